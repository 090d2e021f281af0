"""The doctor on a run's own work: all of it passes here, and each library that breaks costs its own lines."""

import pytest
import torch

from trainer.cli import workings
from trainer.cli.finding import tried
from trainer.settings.overlay import load

CPU = torch.device("cpu")


def line(folder, name):
    """One capability, tried."""
    acts = {capability: (act, without) for capability, act, _, without in workings.capabilities(folder, CPU)}
    act, without = acts[name]
    return tried(name, act, lambda: "the fix", without)


def test_everything_that_a_run_does_works_here_and_nothing_is_printed(capfd):
    lines = list(workings.workings(load({"run.device": "cpu"})))
    assert {each.state for each in lines} == {"ok"}, lines
    assert capfd.readouterr() == ("", "")


# library -> (what of it raises, the capability that is lost or bad, another that goes on)
BREAKS = {
    "peft": ("peft.inject_adapter_in_model", "adapters, denoiser", "lost", "training step"),
    "transformers": ("transformers.CLIPTokenizer.__call__", "tokenizer", "bad", "safetensors"),
    "tokenizers": ("tokenizers.Tokenizer.encode_batch", "tokenizer", "bad", "safetensors"),
    "safetensors": ("safetensors.torch.load_file", "safetensors", "bad", "tokenizer"),
    "accelerate": ("accelerate.big_modeling.init_on_device", "built-in model", "bad", "training step"),
    "torch": ("torch.nn.functional.conv2d", "training step", "bad", "tokenizer"),
    "diffusers": ("diffusers.StableDiffusionPipeline.__call__", "export, reloaded", "lost", "safetensors"),
    "matplotlib": ("matplotlib.figure.Figure.savefig", "plots", "lost", "tokenizer"),
}


@pytest.mark.parametrize("library", BREAKS)
def test_a_library_whose_function_raises_costs_the_line_of_what_needs_it(tmp_path, monkeypatch, library):
    place, name, state, other = BREAKS[library]

    def broken(*_, **__):
        raise RuntimeError(f"{library} has changed its mind")

    monkeypatch.setattr(place, broken)
    found = line(tmp_path, name)
    assert found.state == state and f"{library} has changed its mind" in found.detail and found.fix == "the fix"
    assert bool(found.without) == (state == "lost")
    assert line(tmp_path, other).state == "ok"
    assert torch.get_default_dtype() == torch.float32, "what is tried next computes as it would alone"


def test_adapters_that_change_nothing_do_not_pass_for_working(tmp_path, monkeypatch):
    """A peft that injects what does not learn gives no error; the loss tells."""
    from trainer.models import adapters

    real = adapters.inject

    def frozen(parts, settings, **more):
        count = real(parts, settings, **more)
        for parameter in parts.denoiser.parameters():
            parameter.requires_grad_(False)
        return count

    monkeypatch.setattr(adapters, "inject", frozen)
    assert line(tmp_path, "adapters, denoiser").state == "lost"


def test_a_tokenizer_with_other_ids_is_found(tmp_path, monkeypatch):
    from trainer.models.sd import text

    real = text.tokenize
    monkeypatch.setattr(text, "tokenize", lambda t, prompts: {name: ids + 1 for name, ids in real(t, prompts).items()})
    found = line(tmp_path, "tokenizer")
    assert found.state == "bad" and "became" in found.detail
