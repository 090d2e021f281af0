"""Attention backends and recompute kernels inside real diffusers models: same results, fewer bytes, nothing left behind."""

import weakref

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.errors import ConfigError
from trainer.machine import attending
from trainer.memory import attention, recompute_kernels
from trainer.models import STABLE, family
from trainer.policy import Policy

NAMES = [each.name for each in STABLE]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    """(UNet, a function that runs it forward and backward and returns prediction, gradients and bytes kept between)"""
    unet = family(request.param).tiny().denoiser
    torch.manual_seed(0)
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 77, unet.config.cross_attention_dim)
    added = None
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.randn(2, 6)}

    def run():
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            unet(sample, torch.tensor([3, 500]), text, added_cond_kwargs=added)
        prediction = unet(sample, torch.tensor([3, 500]), text, added_cond_kwargs=added).sample
        weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
        gradients = torch.autograd.grad(prediction.square().mean(), list(unet.parameters()))
        return prediction, gradients, sum(size for place, size in kept.items() if place not in weights)

    return unet, run


def same(a, b):
    return torch.equal(a[0], b[0]) and all(map(torch.equal, a[1], b[1]))


def test_our_attention_equals_that_of_diffusers_bit_for_bit_and_can_be_undone(model):
    unet, run = model
    before, processors = run(), dict(unet.attn_processors)
    undo = attention.apply(unet, Policy())
    during = run()
    undo()
    assert same(before, during)
    assert unet.attn_processors == processors


def test_the_math_path_keeps_more_bytes_and_agrees(model):
    unet, run = model
    fused = run()
    undo = attention.apply(unet, Policy(attention="math"))
    plain = run()
    undo()
    assert plain[2] > fused[2]
    assert (plain[0] - fused[0]).norm() < 1e-5 * fused[0].norm()


def test_recompute_kernels_change_no_bit_keep_fewer_bytes_and_can_be_undone(model):
    unet, run = model
    names, before = list(unet.state_dict()), run()
    undo = recompute_kernels.apply(unet, Policy(recompute_kernels=True))
    during = run()
    assert list(unet.state_dict()) == names
    undo()
    after = run()
    assert same(before, during) and same(before, after)
    assert during[2] < 0.85 * before[2]
    assert after[2] == before[2]


class Live(TorchDispatchMode):
    """Bytes of all storages made under it that are still alive."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        return result

    def bytes(self):
        return sum(size for storage, size in self.storages.values() if storage() is not None)


def test_what_norms_and_gates_make_is_not_alive_between_forward_and_backward(model):
    unet, _ = model
    sd = unet.config
    if sd.addition_embed_type is not None:
        pytest.skip("the same blocks as in the others")

    def alive():
        with Live() as live:
            kept = unet(
                torch.randn(2, 4, 32, 32), torch.tensor([3, 500]), torch.randn(2, 77, sd.cross_attention_dim)
            ).sample
        assert kept.requires_grad
        return live.bytes()

    before = alive()
    undo = recompute_kernels.apply(unet, Policy(recompute_kernels=True))
    during = alive()
    undo()
    assert during < 0.7 * before, (during, before)


def test_recompute_kernels_may_be_applied_twice(model):
    unet, run = model
    first, second = (
        recompute_kernels.apply(unet, Policy(recompute_kernels=True)),
        recompute_kernels.apply(unet, Policy(recompute_kernels=True)),
    )
    assert run()[0].isfinite().all()
    second()
    first()
    assert not any("forward" in module.__dict__ for module in unet.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [40, 80, 160, 64])
def test_the_kernels_of_this_machine_pass_their_own_check(dtype, head_dim):
    (fact,) = attention.verify([attention.Shape(2, 3, 96, 77, head_dim)], dtype, "cpu")
    assert "flash" in fact and f"heads of {head_dim}" in fact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_is_compared_under_a_mask_where_the_model_has_one(dtype, monkeypatch):
    shape = attention.Shape(2, 3, 96, 80, 40, masked=True)
    (fact,) = attention.verify([shape], dtype, "cpu")
    assert "heads of 40 and a mask" in fact
    attend = attention.attend

    def deaf(query, key, value, name="sdpa", mask=None):
        return attend(query, key, value, name, mask if name == "math" else None)

    monkeypatch.setattr(attention, "attend", deaf)
    with pytest.raises(ConfigError, match="wrong"):
        attention.verify([shape], dtype, "cpu")


def test_a_kernel_with_wrong_gradients_is_found(monkeypatch):
    attend = attention.attend

    def wrong(query, key, value, name="sdpa", mask=None):
        return attend(query, key.detach() * 0.9 + key * 0.1 if name == "sdpa" else key, value, name, mask)

    monkeypatch.setattr(attention, "attend", wrong)
    with pytest.raises(ConfigError, match="wrong"):
        attention.verify([attention.Shape(1, 1, 16, 16, 8)], torch.float32, "cpu")


def test_a_check_of_many_tokens_needs_little_memory_and_still_finds_what_is_wrong(monkeypatch):
    attend, scores = attention.attend, []

    def late(query, key, value, name="sdpa", mask=None):
        scores.append(query.shape[2] * key.shape[2])
        value = torch.cat([value[:, :, :-1], value[:, :, -1:] * 3], 2) if name == "sdpa" else value
        return attend(query, key, value, name, mask)

    attention.verify([attention.Shape(1, 2, 1100, 300, 16)], torch.float32, "cpu")
    monkeypatch.setattr(attention, "attend", late)
    with pytest.raises(ConfigError, match="wrong"):
        attention.verify([attention.Shape(1, 2, 1100, 300, 16)], torch.float32, "cpu")
    assert scores[-1] <= attention.SAMPLE * 300


def test_the_name_of_the_kernel_in_use_is_known():
    q = torch.randn(1, 1, 16, 8)
    assert attention.kernel_for(q, q, q) == "flash"
    with sdpa_kernel(SDPBackend.MATH):
        assert attention.kernel_for(q, q, q) == "math"


def test_xformers_is_refused_with_a_fix_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xformers", None)
    with pytest.raises(ConfigError, match=r"pip install .* xformers"):
        attention.resolve("xformers")


SHAPE = attention.Shape(1, 2, 64, 77, 16)
CPU = torch.device("cpu")


@pytest.fixture
def order():
    before = torch._C._get_sdp_priority_order()
    yield lambda: [SDPBackend(kernel) for kernel in torch._C._get_sdp_priority_order()]
    torch._C._set_sdp_priority_order(before)


def test_where_only_one_kernel_takes_a_call_nothing_is_chosen(order):
    """As on every CPU."""
    before = order()
    assert attention.choose(SHAPE, torch.float32, CPU) == (attention.ORDER, "")
    assert attention.settle([SHAPE], torch.float32, CPU) == attention.verify([SHAPE], torch.float32, CPU)
    assert attention.settle([], torch.float32, CPU) == [] and order() == before


@pytest.fixture
def cudnn_wins(monkeypatch):
    flash, cudnn = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    seen = [attending.Timed(flash, 3e-3, 9, 9), attending.Timed(cudnn, 2e-3, 9, 9)]
    monkeypatch.setattr(attending, "timed", lambda size, dtype, meter, kernels, mask: seen)


def test_the_fastest_kernel_comes_first_for_the_whole_run_and_that_is_said(order, cudnn_wins):
    said = attention.settle([SHAPE], torch.float32, CPU)
    assert said[-1].startswith("attention: cuDNN comes first, 1.50 times as fast here as flash for 64 x 77 tokens")
    assert order()[:2] == [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION] and order()[3] == SDPBackend.MATH


def test_a_fast_kernel_that_is_wrong_is_left_alone(order, cudnn_wins, monkeypatch):
    orders, verify = [], attention.verify

    def wrong(kinds, dtype, device, name="sdpa", order=attention.ORDER):
        orders.append(order[0])
        if order[0] == SDPBackend.CUDNN_ATTENTION:
            raise ConfigError("the cuDNN attention kernel is wrong", "another version")
        return verify(kinds, dtype, device, name)

    before = order()
    monkeypatch.setattr(attention, "verify", wrong)
    assert len(attention.settle([SHAPE], torch.float32, CPU)) == 1 and order() == before
    assert orders == [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


def test_who_asked_for_another_attention_gets_it(order, cudnn_wins):
    assert len(attention.settle([SHAPE], torch.float32, CPU, "math")) == 1 and order()[0] != SDPBackend.CUDNN_ATTENTION


def test_forbidding_math_is_undone_completely():
    def flags():
        cuda = torch.backends.cuda
        return (
            cuda.math_sdp_enabled(),
            cuda.flash_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
            torch._C._get_sdp_priority_order(),
        )

    before = flags()
    undo = attention._forbid_math()
    assert not torch.backends.cuda.math_sdp_enabled()
    undo()
    assert flags() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
def test_on_the_card_a_fused_kernel_takes_every_head_of_stable_diffusion(head_dim):
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    facts = attention.verify([attention.Shape(2, 8, 1024, keys, head_dim) for keys in (1024, 77)], dtype, "cuda")
    assert not any("math," in fact for fact in facts)
