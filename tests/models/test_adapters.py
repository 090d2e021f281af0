"""Adapters start as the model itself, learn alone, and fold back into it."""

import pytest
import torch

from trainer.errors import ConfigError
from trainer.models import SD1, SD2, SDXL, adapters
from trainer.settings.config import Lora

PROMPTS = ["a photo of sks dog"]


@pytest.fixture(
    params=[(SD1, False), (SD2, True), (SDXL, False), (SDXL, True)],
    ids=["sd1-lora", "sd2-dora", "sdxl-lora", "sdxl-dora"],
)
def adapted(request):
    family, dora = request.param
    parts = family.tiny()
    given = values(parts)
    before = family.denoise(parts, given).detach()
    count = adapters.inject(parts, Lora(rank=4, alpha=8), dora=dora, text=True)
    return parts, given, before, count


def values(parts):
    generator = torch.Generator().manual_seed(2)
    tokens = parts.family.tokens(parts, PROMPTS)
    sizes = parts.family.extra_values((64, 64), (0, 0), (64, 64), 1)
    return {"sample": torch.randn(1, 4, 8, 8, generator=generator), "timestep": torch.tensor([500])} | tokens | sizes


def stir(parts):
    """Give every adapter parameter a value that matters, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in adapters.trainable(parts):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_a_fresh_adapter_changes_nothing(adapted):
    parts, given, before, _ = adapted
    assert torch.allclose(parts.family.denoise(parts, given), before, atol=1e-5)


def test_only_adapters_learn_and_all_of_them_do(adapted):
    parts, given, _, count = adapted
    parts.family.denoise(parts, given).square().mean().backward()
    learners = dict(adapters.trainable(parts))
    assert count == sum(p.numel() for p in learners.values())
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in learners.items())
    assert not {name for name, p in learners.items() if p.grad is None}


def test_what_is_adapted_is_what_units_train_under_the_names_of_the_model(adapted):
    """SDXL reads the first encoder's penultimate layer, so an adapter of its last layer would learn and save nothing."""
    parts, _, _, _ = adapted
    learners = {name for name, _ in adapters.trainable(parts)}
    inside = {
        n for unit in parts.family.units(parts, True) for n, p in unit.module.named_parameters() if p.requires_grad
    }
    assert learners == inside
    assert any(name.startswith("text.encoder.layers.0.") for name in learners)


def test_a_saved_adapter_loads_into_a_fresh_model(adapted):
    parts, given, _, _ = adapted
    stir(parts)
    saved = {name: tensor.clone() for name, tensor in adapters.state_dict(parts).items()}
    assert not any("default" in name for name in saved)
    dora = any("magnitude" in name for name in saved)
    other = parts.family.tiny()
    adapters.inject(other, Lora(rank=4, alpha=8), dora=dora, text=True, seed=9)
    adapters.load_state_dict(other, saved)
    assert torch.equal(other.family.denoise(other, given), parts.family.denoise(parts, given))


def test_folding_equals_the_adapted_model_and_leaves_it_alone(adapted):
    parts, given, before, _ = adapted
    stir(parts)
    with torch.no_grad():
        adapted_result = parts.family.denoise(parts, given)
        plain = parts.family.tiny(seed=5)
        folded = dict(adapters.merged(parts))
        own = {f"{prefix}.{name}": p for prefix, m in plain.modules().items() for name, p in m.named_parameters()}
        assert folded.keys() == own.keys()
        for name, parameter in own.items():
            parameter.copy_(folded[name])
        assert torch.allclose(plain.family.denoise(plain, given), adapted_result, atol=1e-5)
        assert not torch.allclose(before, adapted_result, atol=1e-4)
        assert torch.equal(parts.family.denoise(parts, given), adapted_result)


def test_removing_the_adapters_gives_the_model_back(adapted):
    parts, given, before, _ = adapted
    stir(parts)
    adapters.remove(parts)
    assert torch.equal(parts.family.denoise(parts, given), before)
    assert not adapters.injected(parts)
    adapters.inject(parts, Lora(rank=2))
    assert adapters.injected(parts)


def test_the_same_seed_gives_the_same_adapter():
    first, second, third = SD1.tiny(), SD1.tiny(), SD1.tiny()
    for parts, seed in ((first, 1), (second, 1), (third, 2)):
        adapters.inject(parts, Lora(), seed=seed)
    a, b, c = (adapters.state_dict(parts) for parts in (first, second, third))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_convolutions_can_have_adapters_and_unknown_targets_are_named():
    parts = SD1.tiny()
    adapters.inject(parts, Lora(targets=["conv1", "to_q", "proj_in"]))
    assert any("conv1.lora_A" in name for name in adapters.state_dict(parts))
    with pytest.raises(ConfigError, match="to_z"):
        adapters.inject(SD1.tiny(), Lora(targets=["to_z"]))
    with pytest.raises(ConfigError, match="norm1"):
        adapters.inject(SD1.tiny(), Lora(targets=["norm1"]))


def test_wide_convolutions_may_have_a_rank_and_an_alpha_of_their_own():
    parts = SD1.tiny()
    adapters.inject(parts, Lora(rank=4, alpha=2, conv_rank=2, conv_alpha=3, targets=["to_q", "conv1", "proj_in"]))
    scales = adapters.scales(parts)
    assert {rank for name, (rank, _) in scales.items() if name.endswith("conv1")} == {2}
    assert {scale for name, (_, scale) in scales.items() if name.endswith("conv1")} == {1.5}
    assert {scales[name] for name in scales if not name.endswith("conv1")} == {(4, 0.5)}, (
        "1x1 convolutions have the rest's"
    )
    with pytest.raises(ConfigError, match="conv_rank"):
        adapters.inject(SD1.tiny(), Lora(conv_rank=2))


def test_an_adapter_may_start_as_kohyas_do():
    gaussian, kaiming = SD1.tiny(), SD1.tiny()
    adapters.inject(gaussian, Lora(rank=4))
    adapters.inject(kaiming, Lora(rank=4, init="kaiming"))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    first, other = (adapters.state_dict(parts)[name] for parts in (gaussian, kaiming))  # (4, 64)
    assert first.std() > 0.2 and other.abs().max() <= 64**-0.5


def test_the_text_encoder_has_targets_of_its_own():
    parts = SD1.tiny()
    adapters.inject(parts, Lora(rank=2, text_targets=["q_proj", "fc1"]), text=True)
    assert {name.rpartition(".")[2] for name in adapters.scales(parts) if name.startswith("text.")} == {"q_proj", "fc1"}
    with pytest.raises(ConfigError, match="text_targets"):
        adapters.inject(SD1.tiny(), Lora(text_targets=["to_q"]), text=True)


def test_an_adapter_of_another_rank_is_refused():
    parts, other = SD1.tiny(), SD1.tiny()
    adapters.inject(parts, Lora(rank=4))
    adapters.inject(other, Lora(rank=8))
    with pytest.raises(ConfigError, match="rank"):
        adapters.load_state_dict(other, adapters.state_dict(parts))
    with pytest.raises(ConfigError, match="does not fit"):
        adapters.load_state_dict(other, {})


def test_dropout_acts_only_while_training():
    parts = SD1.tiny()
    adapters.inject(parts, Lora(dropout=0.5))
    stir(parts)
    given = values(parts)
    assert not torch.equal(SD1.denoise(parts, given), SD1.denoise(parts, given))
    adapters.dropout(parts, False)
    assert torch.equal(SD1.denoise(parts, given), SD1.denoise(parts, given))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_of_a_model_in_16_bits_begin_as_those_of_the_same_model_in_fp32(dora):
    half, wide = SD1.tiny(), SD1.tiny()
    for ours, theirs in zip(half.denoiser.parameters(), wide.denoiser.parameters(), strict=True):
        ours.data = ours.data.half()
        theirs.data = ours.data.float()
    plain = {name: p.data_ptr() for name, p in half.denoiser.named_parameters()}
    for parts in (half, wide):
        adapters.inject(parts, Lora(rank=4, targets=["to_q", "conv1"]), dora=dora)
    found, expected = adapters.state_dict(half), adapters.state_dict(wide)
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == torch.float32 and torch.equal(found[name], expected[name]) for name in expected)
    kept = {
        name.replace(".base_layer.", "."): p.data_ptr()
        for name, p in half.denoiser.named_parameters()
        if ".lora_" not in name
    }
    assert kept == plain
