"""The doctor on arithmetic: kernels and optimizers are run, what fails is named, and ours alone decide about training."""

import sys
from itertools import islice

import pytest
import torch

from trainer.cli import arithmetic
from trainer.settings.overlay import load


@pytest.fixture
def config():
    return load({"run.device": "cpu"})


def by_name(lines):
    return {line.name: line for line in lines}


def test_attention_is_run_forward_and_backward_and_compared_with_math(config):
    lines = by_name(arithmetic.attention(config))
    assert lines["math"].state == "ok" and lines["sdpa flash"].state == "ok"
    assert lines["sdpa cuDNN"].state == "off", "cuDNN has no kernel for the CPU"


def test_a_wrong_attention_kernel_is_found(config, monkeypatch):
    real = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def wrong(q, k, v):
        calls.append(1)
        return real(q, k, v) * (1.0 if len(calls) == 1 else 1.1)  # the first call is the reference

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    lines = by_name(arithmetic.attention(config))
    assert lines["sdpa flash"].state == "bad" and lines["sdpa flash"].fix


def test_our_optimizers_take_real_steps(config):
    lines = list(islice(arithmetic.optimizers(config), 4))
    assert [line.name for line in lines] == ["adamw fp32", "adamw 24bit, 8bit", "adamw 16bit_sr, 4bit", "torch_adamw"]
    assert all(line.state == "ok" for line in lines), lines


@pytest.mark.parametrize(
    ("module", "name", "lost", "package"),
    [
        ("bitsandbytes.optim", "AdamW8bit", "bnb_adamw8bit", "bitsandbytes"),
        ("bitsandbytes.optim", "PagedAdamW8bit", "bnb_paged_adamw8bit", "bitsandbytes"),
        ("prodigyopt", "Prodigy", "prodigy", "prodigyopt"),
        ("transformers.optimization", "Adafactor", "adafactor", "transformers"),
    ],
)
def test_an_optimizer_of_a_library_whose_step_raises_costs_its_own_line(
    config, monkeypatch, module, name, lost, package
):
    def step(*_, **__):
        raise RuntimeError("no kernel image is available")

    library = pytest.importorskip(module)
    monkeypatch.setattr(getattr(library, name), "step", step)
    lines = by_name(arithmetic.optimizers(config))
    assert lines[lost].state == "lost" and "no kernel image is available" in lines[lost].detail
    assert lines[lost].fix.endswith(f" {package}") and "every other --optimizer works" in lines[lost].without
    assert {line.state for other, line in lines.items() if other != lost} == {"ok"}


def test_an_optimizer_whose_library_does_not_load_says_why_and_has_it_installed_again(config, monkeypatch):
    """Hidden from transformers and others, it is "not a package" for Python, and pip would call it satisfied."""
    from trainer.machine import libraries

    monkeypatch.setattr(libraries, "_hidden", {"bitsandbytes": "libcudart.so.12 is not there"})
    for module in ["bitsandbytes", *(m for m in sys.modules if m.startswith("bitsandbytes."))]:
        monkeypatch.setitem(sys.modules, module, None)
    line = by_name(arithmetic.optimizers(config))["bnb_adamw8bit"]
    assert (
        line.state == "lost" and line.detail == "needs bitsandbytes, which does not load: libcudart.so.12 is not there"
    )
    assert "--force-reinstall" in line.fix and line.fix.endswith(" bitsandbytes")


def test_our_own_optimizer_broken_is_training_broken(config, monkeypatch):
    from trainer.kernels import adamw_lowbit

    def step_(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(adamw_lowbit, "step_", step_)
    lines = by_name(arithmetic.optimizers(config))
    assert lines["adamw fp32"].state == "bad" and "--optimizer torch_adamw" in lines["adamw fp32"].fix
    assert lines["torch_adamw"].state == lines["prodigy"].state == "ok"


def test_a_card_without_triton_computes_by_the_references(config, monkeypatch):
    monkeypatch.setattr(arithmetic, "place", lambda config: (torch.device("cuda"), torch.bfloat16))
    monkeypatch.setattr(arithmetic, "fault", lambda name: "undefined symbol")
    (line,) = arithmetic.kernels(config)
    assert line.state == "lost" and "undefined symbol" in line.detail and "reference" in line.without


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_a_fused_attention_and_triton_work():
    from trainer.cli.installed import card

    config = load({})
    assert any(line.state == "ok" and line.name != "math" for line in arithmetic.attention(config))
    assert all(line.state == "ok" for line in arithmetic.kernels(config))
    assert by_name(card(config))["video memory"].state == "ok"
