"""The optimizer kernel by its reference: exact formats, torch's arithmetic, and low-bit moments that stay close."""

import pytest
import torch
from trainer.kernels.adamw_lowbit import ALIGN, State, block_bytes, layout, reference, scalars, step_, views
from trainer.kernels.weights24 import pack, random_bits, random_key, round_randomly, unpack

DTYPES = [torch.bfloat16, torch.float16]


def cpu(shape, dtype):
    return torch.empty(shape, dtype=dtype)


def state_of(source, weights="24bit", moments="8bit", dtype=torch.bfloat16):
    state = State.allocate(source.numel(), weights=weights, moments=moments, compute_dtype=dtype, empty=cpu)
    return state.initialise(source)


def wide_range(n=20_000, low=-9, high=4):
    torch.manual_seed(0)
    return torch.randn(n) * 10 ** torch.empty(n).uniform_(low, high)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacking_and_packing_again_changes_nothing(dtype):
    weight, correction = pack(wide_range(), dtype)
    again = pack(unpack(weight, correction), dtype)
    assert torch.equal(weight, again[0]) and torch.equal(correction, again[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_weight_and_correction_of_the_packed_kind_is_a_different_number(dtype):
    weight, correction = pack(torch.linspace(1e-3, 3.0, 50_000), dtype)
    master = unpack(weight, correction)
    assert torch.equal(master, master.sort().values)
    assert (master[1:] > master[:-1]).float().mean() > 0.95  # neighbours 6e-5 apart differ nearly everywhere


def test_a_bf16_pair_keeps_16_significant_bits_everywhere():
    x = wide_range(low=-30, high=30)
    assert ((unpack(*pack(x, torch.bfloat16)) - x).abs() <= x.abs() * 2.0**-16).all()


def test_an_fp16_pair_keeps_19_significant_bits_and_2_to_the_minus_33_below_them():
    x = wide_range(low=-9, high=3)
    assert ((unpack(*pack(x, torch.float16)) - x).abs() <= (x.abs() * 2.0**-19).clamp_min(2.0**-33)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weight_alone_is_the_rounded_master(dtype):
    x = wide_range(low=-4, high=2)
    weight, correction = pack(x, dtype)
    spacing = (weight.view(torch.int16) ^ 1).view(dtype).float() - weight.float()
    assert ((weight.float() - unpack(weight, correction)).abs() <= spacing.abs() * 0.5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_zeros_infinities_and_nans_survive(dtype):
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf"), float("nan")])
    back = unpack(*pack(special, dtype))
    assert torch.equal(back.isnan(), special.isnan())
    assert torch.equal(back[:6], special[:6]) and torch.equal(back.signbit()[:6], special.signbit()[:6])


def test_values_beyond_fp16_stay_finite():
    assert unpack(*pack(torch.tensor([7e4, -1e30]), torch.float16)).abs().max() < 65536


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0300123, -1.7e-6, 3.14159])
def test_random_rounding_is_right_on_average_and_never_far(dtype, value):
    n = 1 << 17
    x = torch.full((n,), value)
    rounded = round_randomly(x, dtype, random_bits(torch.arange(n), random_key(3, 7))).float()
    assert len(rounded.unique()) == 2
    gap = rounded.max() - rounded.min()
    assert abs(rounded.double().mean() - x[0].double()) < 4 * gap / n**0.5 / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0300123, -1.7e-6])
def test_a_randomly_rounded_pair_is_right_on_average_to_the_last_of_its_bits(dtype, value):
    n = 1 << 16
    x = torch.full((n,), value)
    pairs = unpack(*pack(x, dtype, random_bits(torch.arange(n), random_key(3, 7)))).double()
    assert len(pairs.unique()) <= 2
    gap = max(float(pairs.max() - pairs.min()), abs(value) * 2.0**-23)
    assert abs(pairs.mean() - x[0].double()) < 2 * gap / n**0.5


def test_random_streams_of_different_steps_and_seeds_share_nothing():
    places = torch.arange(1 << 16)
    streams = [random_bits(places, random_key(seed, step)) for seed, step in ((0, 1), (0, 2), (1, 1), (1 << 40, 1))]
    for i, a in enumerate(streams):
        assert abs((a & 0xFFFF).double().mean() / 0xFFFF - 0.5) < 0.01
        for b in streams[i + 1 :]:
            assert (a == b).sum() < 3
            assert abs(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1]) < 0.02


def test_fp32_state_equals_torch_adamw_bit_for_bit():
    torch.manual_seed(0)
    start = torch.randn(5003) * 0.03
    parameter = torch.nn.Parameter(start.clone())
    torch_adamw = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.02, fused=True)
    state, one_by_one = state_of(start, "fp32", "fp32"), start.clone()
    m, v = torch.zeros(5003), torch.zeros(5003)
    for step in range(1, 21):
        grad = torch.randn(5003) * 1e-3
        parameter.grad = grad.clone()
        torch_adamw.step()
        step_(state, grad, lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.02, step=step)
        assert torch.equal(state.master(), parameter.data), step
        words = scalars(1e-3, 0.9, 0.99, 0.02, step, 0)
        reference(one_by_one, None, m, None, v, None, grad, None, None, None, words, "fp32", 0.9, 0.99, 1e-8)
    assert torch.equal(m, state.tensors["m"]) and torch.allclose(one_by_one, state.master(), rtol=0, atol=2e-8)


# what 20 steps may differ by from fp32, relative to the distance travelled
LIMITS = {("24bit", "fp32"): 2e-4, ("24bit", "8bit"): 0.01, ("24bit", "4bit"): 0.15, ("16bit_sr", "8bit"): 0.05}


@pytest.mark.parametrize("weights,moments", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_bit_state_travels_where_fp32_travels(weights, moments, dtype):
    torch.manual_seed(0)
    start = torch.randn(3 * ALIGN + 17) * 0.03
    exact, low = state_of(start, "fp32", "fp32"), state_of(start, weights, moments, dtype)
    begin = low.master()
    for step in range(1, 21):
        grad = torch.randn_like(start) * 1e-3 + 1e-3
        for state in (exact, low):
            step_(state, grad, lr=1e-3, weight_decay=0.01, step=step, seed=5)
    travelled = exact.master() - start
    assert ((low.master() - begin) - travelled).norm() <= LIMITS[weights, moments] * travelled.norm()


@pytest.mark.parametrize("moments", ["8bit", "4bit"])
def test_small_moments_beside_large_ones_are_not_lost(moments):
    """v of one element is 10^4 times that of its neighbours: a code of zero would divide by nothing."""
    torch.manual_seed(0)
    scale = torch.where(torch.arange(1024) % 32 == 0, 1e-2, 1e-4)
    low, exact = state_of(torch.zeros(1024), "fp32", moments), state_of(torch.zeros(1024), "fp32", "fp32")
    for step in range(1, 60):
        grad = torch.randn(1024) * scale
        for state in (low, exact):
            step_(state, grad, lr=1e-3, step=step)
    assert low.master().abs().max() < 2 * exact.master().abs().max()
    if moments == "8bit":  # 16 codes cannot follow a hundredfold range; not exploding is what is asked of them
        assert (low.master() - exact.master()).norm() < 0.1 * exact.master().norm()


def test_moments_agree_with_bitsandbytes_within_quantisation():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    n = 1 << 13
    start = torch.randn(n) * 0.03
    parameter = torch.nn.Parameter(start.clone())
    theirs = bitsandbytes.optim.AdamW8bit([parameter], lr=1e-4, weight_decay=0.01, min_8bit_size=1)
    ours, exact = state_of(start, "24bit", "8bit"), state_of(start, "fp32", "fp32")
    for step in range(1, 41):
        grad = torch.randn(n) * 1e-3 + 3e-4
        parameter.grad = grad.clone()
        theirs.step()
        for state in (ours, exact):
            step_(state, grad, lr=1e-4, weight_decay=0.01, step=step)
    m, v = exact.moments_fp32()
    for mine, true in zip(ours.moments_fp32(), (m, v), strict=True):
        assert (mine - true).norm() < 0.03 * true.norm()
    travelled = exact.master() - start
    error = (ours.master() - start - travelled).norm() / travelled.norm()
    their_error = (parameter.data - start - travelled).norm() / travelled.norm()
    assert error < 0.02 and error <= their_error * 1.05


def test_a_clipped_step_moves_less_than_half_the_bytes_of_bitsandbytes_on_fp32_master_weights():
    """Bytes a weight in DRAM, counted: norm of the gradient, clipping, update, and the bf16 weight to compute with."""
    state = state_of(torch.zeros(1 << 16), "24bit", "8bit")
    assert state.nbytes / state.n == 5.125
    ours = 2 + (2 + 2 * 5.125)  # norm reads the bf16 gradient; one pass reads it and reads and writes the state
    moments = 2 * (1 + 4 / 256)
    theirs = 4 + 8 + (4 + 2 * (4 + moments)) + (4 + 2)  # norm, scaling in place, update, cast of the fp32 weight
    assert ours <= 0.5 * theirs


@pytest.mark.parametrize("weights", ["fp32", "24bit", "16bit_sr"])
@pytest.mark.parametrize("moments", ["fp32", "8bit", "4bit"])
def test_a_raised_skip_flag_leaves_every_byte_as_it_is(weights, moments):
    state = state_of(torch.randn(300), weights, moments)
    step_(state, torch.randn(300), lr=1e-2, step=1)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    step_(state, torch.full((300,), float("nan")), lr=1e-2, step=2, skip=torch.tensor(1.0))
    assert all(torch.equal(before[name], state.tensors[name]) for name in before)
    step_(state, torch.randn(300), lr=1e-2, step=2, skip=torch.tensor(0.0))
    assert not torch.equal(before["weight"], state.tensors["weight"])


def test_the_clip_factor_scales_the_gradient():
    start, grad = torch.randn(500), torch.randn(500)
    a, b = state_of(start, "24bit", "8bit"), state_of(start, "24bit", "8bit")
    step_(a, grad.clone(), lr=1e-2, step=1, clip_scale=torch.tensor(0.25))
    step_(b, grad * 0.25, lr=1e-2, step=1)
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_numbers_on_the_device_replace_numbers_of_the_call():
    start, grad = torch.randn(500), torch.randn(500)
    a, b = state_of(start, "16bit_sr", "8bit"), state_of(start, "16bit_sr", "8bit")
    step_(a, grad, lr=1e-2, weight_decay=0.1, step=3, seed=9)
    numbers = torch.tensor(scalars(1e-2, 0.9, 0.999, 0.1, 3, 9), dtype=torch.int32)
    step_(b, grad, numbers=numbers)
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_a_state_restored_from_its_tensors_continues_bit_for_bit():
    torch.manual_seed(0)
    grads = [torch.randn(1000) * 1e-3 for _ in range(6)]
    straight = state_of(torch.ones(1000), "16bit_sr", "4bit")
    for step, grad in enumerate(grads, 1):
        step_(straight, grad, lr=1e-3, step=step, seed=2)
    stopped = state_of(torch.ones(1000), "16bit_sr", "4bit")
    for step, grad in enumerate(grads[:3], 1):
        step_(stopped, grad, lr=1e-3, step=step, seed=2)
    resumed = state_of(torch.zeros(1000), "16bit_sr", "4bit")
    for name, tensor in stopped.tensors.items():
        resumed.tensors[name].copy_(tensor)
    for step, grad in enumerate(grads[3:], 4):
        step_(resumed, grad, lr=1e-3, step=step, seed=2)
    assert all(torch.equal(straight.tensors[name], resumed.tensors[name]) for name in straight.tensors)


@pytest.mark.parametrize("moments", ["8bit", "4bit"])
def test_long_buffers_are_worked_through_in_pieces_with_the_same_result(moments, monkeypatch):
    torch.manual_seed(0)
    start, grad = torch.randn(1100), torch.randn(1100)
    whole, pieces = state_of(start, "16bit_sr", moments), state_of(start, "16bit_sr", moments)
    step_(whole, grad, lr=1e-2, step=1)
    monkeypatch.setattr("trainer.kernels.adamw_state.CHUNK", 256)
    step_(pieces, grad, lr=1e-2, step=1)
    assert all(torch.equal(whole.tensors[name], pieces.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize("weights,moments", [("24bit", "8bit"), ("16bit_sr", "4bit"), ("fp32", "fp32")])
def test_slices_of_a_row_are_updated_to_the_bits_of_the_whole(weights, moments):
    torch.manual_seed(0)
    start, grad, cut = torch.randn(1000) * 0.03, torch.randn(1000) * 1e-3, 384
    whole = state_of(start, weights, moments)
    parts = [state_of(start[:cut], weights, moments), state_of(start[cut:], weights, moments)]
    parts[1].first = cut
    for step in (1, 2):
        step_(whole, grad, lr=1e-3, step=step, seed=3)
        step_(parts[0], grad[:cut], lr=1e-3, step=step, seed=3)
        step_(parts[1], grad[cut:], lr=1e-3, step=step, seed=3)
    for name, tensor in whole.tensors.items():
        assert torch.equal(torch.cat([part.tensors[name] for part in parts]), tensor), name


def test_one_block_of_bytes_holds_the_whole_state():
    shapes = layout(1000, "24bit", "4bit", torch.bfloat16)
    names = ("correction", "m", "m_scale", "v", "v_scale")
    block = torch.zeros(block_bytes(shapes, names), dtype=torch.uint8)
    parts = views(block, shapes, names)
    assert {name: (tuple(part.shape), part.dtype) for name, part in parts.items()} == {n: shapes[n] for n in names}
    for part in parts.values():
        part.fill_(1)
    assert block.count_nonzero() > 0.3 * block.numel()
    assert block.numel() <= sum(part.nbytes for part in parts.values()) + 16 * len(names)


def test_on_the_meta_device_a_step_allocates_nothing():
    from torch.utils._python_dispatch import TorchDispatchMode

    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and not func.is_view:
                made.append(func)
            return result

    def meta(shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    state = State.allocate(10_000, weights="24bit", moments="8bit", compute_dtype=torch.bfloat16, empty=meta)
    grad, clip, skip = meta((10_000,), torch.bfloat16), meta((), torch.float32), meta((), torch.float32)
    with Watch():
        step_(state, grad, lr=1e-3, step=1, clip_scale=clip, skip=skip)
    assert made == []
    assert state.master().is_meta
