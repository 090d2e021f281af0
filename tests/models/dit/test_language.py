"""Layers of a language model, one after the other, are the language model."""

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from trainer.models.dit import language
from trainer.units import check

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}


def qwen(kind: type = Qwen3Model) -> nn.Module:
    torch.manual_seed(0)
    return kind(Qwen3Config(**SMALL)).eval()


def gemma() -> nn.Module:
    """With every second layer looking back six tokens only, scores capped, and norms that are not the neutral ones."""
    torch.manual_seed(0)
    config = Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=16, attn_logit_softcapping=0.5)
    model = Gemma2Model(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


MODELS = {"qwen": qwen, "qwen with a head": lambda: qwen(Qwen3ForCausalLM), "gemma": gemma}


@pytest.fixture(params=MODELS)
def model(request) -> nn.Module:
    return MODELS[request.param]()


def prompts(lengths: tuple[int, ...], length: int = 20, left: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 50, (len(lengths), length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    return ids * mask, mask


def run(model: nn.Module, ids: Tensor, mask: Tensor, states: tuple[int, ...]) -> Tensor:
    values = {"input_ids": ids, "mask": mask}
    for unit in language.split(model, states):
        written = unit.run(*(values[name] for name in unit.reads))
        values |= dict(zip(unit.writes, (written,) if isinstance(written, Tensor) else written, strict=True))
    return values["text"]


@pytest.mark.parametrize("lengths", [(20, 3, 11), (20, 20), (1,)], ids=["of many lengths", "full", "one token"])
@pytest.mark.parametrize("states", [(-2,), (1, 2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("left", [False, True], ids=["padded after", "padded before"])
@torch.no_grad()
def test_layers_in_order_equal_plain_transformers_bit_for_bit(model, lengths, states, left):
    ids, mask = prompts(lengths, left=left)
    plain = language.encode(model, ids, mask, states)
    assert plain.shape == (len(lengths), 20, 32 * len(states))
    assert torch.equal(run(model, ids, mask, states), plain)


@torch.no_grad()
def test_a_window_changes_what_gemma_thinks_of_a_late_token():
    ids, mask = prompts((20,))
    narrow, wide = gemma(), gemma()
    wide.config.sliding_window = 20
    same = language.encode(narrow, ids, mask, (1,)) == run(wide, ids, mask, (1,))
    assert same[0, :6].all() and not same[0, 6:].any()


def test_gradients_through_layers_equal_plain_autograd(model):
    ids, mask = prompts((20, 3, 11))

    def gradients(text: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        text.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(language.encode(model, ids, mask, (2, -2)))
    split = gradients(run(model, ids, mask, (2, -2)))
    assert plain.keys() == split.keys()
    assert all(torch.equal(plain[name], split[name]) for name in plain)


def test_each_layer_is_a_unit_and_what_comes_after_the_last_state_is_in_none(model):
    units = language.split(model, (-2,))
    check(units, {"input_ids", "mask"})
    names = {name for unit in units for name, _ in unit.module.named_parameters()}
    own = {f"text.{name}" for name, _ in model.named_parameters()}
    unused = {name for name in own if ".layers.3." in name or name.endswith(("lm_head.weight", "text.norm.weight"))}
    assert names == own - unused - {"text.model.norm.weight"}
    layers = [unit for unit in units if ".layers." in unit.name]
    assert [{name.split(".layers.")[1][0] for name, _ in unit.module.named_parameters()} for unit in layers] == [
        {"0"},
        {"1"},
        {"2"},
    ]


def test_the_state_behind_the_final_norm_is_refused(model):
    with pytest.raises(AssertionError, match="normed"):
        language.split(model, (-1,))


def test_layers_run_without_memory(model):
    ids, mask = prompts((20, 3))
    text = run(model.to("meta"), ids.to("meta"), mask.to("meta"), (1, 3))
    assert text.is_meta and text.shape == (2, 20, 64)
