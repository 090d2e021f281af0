"""Where Triton is there and builds nothing, references work in its place, and a plan counts what they take."""

import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from trainer.kernels import choice
from trainer.kernels.adamw_lowbit import State, step_
from trainer.kernels.groupnorm_silu import groupnorm_silu

from trainer.plan.simulate import Tracker

CPU = torch.device("cpu")


class Launch:
    """A kernel that is launched as Triton's are."""

    def __init__(self, run):
        self.run = run

    def __getitem__(self, grid):
        return self.run


def fails_with(error: BaseException):
    def run(*_):
        raise error

    return Launch(run)


FAILURES = {
    "no compiler": (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "C compiler"),
    "no headers": (
        subprocess.CalledProcessError(1, "gcc", stderr="main.c:4:10: fatal error: Python.h: No such file or directory\n"),
        "Python.h",
    ),
    "no driver library": (OSError("libcuda.so cannot found!\nPossible files are ..."), "libcuda.so"),
    "a module that does not load": (ImportError("DLL load failed while importing cuda_utils"), "DLL load failed"),
}  # fmt: skip


@pytest.mark.parametrize("error,words", FAILURES.values(), ids=FAILURES.keys())
def test_a_kernel_that_cannot_be_built_is_a_line_and_no_crash(error, words, monkeypatch):
    monkeypatch.setattr(choice, "triton", object())
    monkeypatch.setattr(choice, "double", fails_with(error), raising=False)
    said = choice.attempt(CPU)
    assert words in said and "\n" not in said and choice.remedy(said)


def test_a_kernel_that_is_right_is_no_reason_and_one_that_is_wrong_is(monkeypatch):
    monkeypatch.setattr(choice, "triton", object())
    monkeypatch.setattr(choice, "double", Launch(lambda x, y: y.copy_(2 * x)), raising=False)
    assert choice.attempt(CPU) == ""
    monkeypatch.setattr(choice, "double", Launch(lambda x, y: y.copy_(x)), raising=False)
    assert "wrong numbers" in choice.attempt(CPU)


def test_without_triton_the_reason_says_so_and_on_windows_its_package_is_named(monkeypatch):
    monkeypatch.setattr(choice, "triton", None)
    reason = choice.attempt(CPU)
    monkeypatch.setattr(choice.platform, "system", lambda: "Windows")
    assert "not installed" in reason and "triton-windows" in choice.remedy(reason)


def test_missing_headers_are_named_with_their_package(monkeypatch):
    monkeypatch.setattr(choice, "triton", object())
    monkeypatch.setattr(choice.platform, "system", lambda: "Linux")
    assert "-dev" in choice.remedy("fatal error: Python.h: No such file")
    assert "gcc" in choice.remedy("Failed to find C compiler")


def test_a_card_whose_trial_failed_gets_references_and_another_card_keeps_its_kernels(monkeypatch):
    monkeypatch.setattr(choice, "triton", object())
    monkeypatch.setattr(choice, "_broken", {})
    monkeypatch.setattr(choice, "attempt", lambda device: "no compiler" if device.index == 0 else "")
    assert choice.trial(0) and not choice.trial(1)
    cards = [SimpleNamespace(is_cuda=True, get_device=lambda number=number: number) for number in (0, 1)]
    assert [choice.takes(card) for card in cards] == [False, True]
    assert not choice.takes(torch.zeros(1))


def test_a_process_that_made_no_plan_tries_before_its_first_kernel_and_only_then(monkeypatch):
    tried = []
    monkeypatch.setattr(choice, "triton", object())
    monkeypatch.setattr(choice, "_broken", {})
    monkeypatch.setattr(choice, "attempt", lambda device: tried.append(device.index) or "no compiler")
    card = SimpleNamespace(is_cuda=True, get_device=lambda: 0)
    assert not choice.takes(card) and not choice.takes(card)
    assert tried == [0]


def peak(run) -> int:
    tracker = Tracker("meta")
    with tracker:
        run()
    seen = tracker.watched()
    return seen.card_peak - seen.card_kept


def test_a_simulation_of_references_counts_their_fp32_copies():
    x = torch.empty(2, 64, 32, 32, dtype=torch.bfloat16, device="meta")
    weight, bias = (torch.empty(64, dtype=torch.bfloat16, device="meta") for _ in range(2))

    def norm():
        return groupnorm_silu(x, weight, bias, 32)

    def update():
        def empty(shape, dtype):
            return torch.empty(shape, dtype=dtype, device="meta")

        state = State.allocate(1 << 16, weights="24bit", moments="8bit", compute_dtype=torch.bfloat16, empty=empty)
        step_(state, torch.empty(1 << 16, device="meta"), skip=torch.empty((), device="meta"))

    kernels = peak(norm), peak(update)
    with choice.references():
        plain = peak(norm), peak(update)
    assert plain[0] > kernels[0] + 4 * x.numel()  # at least one copy in fp32
    assert plain[1] > kernels[1] + 4 * (1 << 16)


def test_the_gradient_of_a_simulated_reference_is_followed_as_well():
    x = torch.empty(2, 64, 8, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight, bias = (torch.empty(64, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(2))
    with choice.references():
        groupnorm_silu(x, weight, bias, 32).sum().backward()
    assert x.grad.shape == x.shape and weight.grad.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: nothing to build a kernel for")
def test_on_a_card_one_kernel_is_built():
    assert choice.attempt(torch.device("cuda")) == ""


def test_a_kernel_is_launched_on_its_tensors_card_and_nobody_elses_current_one_stays_changed(monkeypatch):
    seen, current = [], [0]

    @contextmanager
    def device_of(x):
        current.append(x.get_device())
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    launch = choice.on_its_card(lambda x, size: seen.append((current[-1], size)))
    for card in (1, 0):
        launch(SimpleNamespace(is_cuda=True, get_device=lambda card=card: card), 8)
    launch(torch.ones(2), 8)
    assert seen == [(1, 8), (0, 8), (0, 8)] and current == [0]
