"""The doctor: findings come from running things, and every failing line carries its fix."""

from itertools import islice

import pytest
import torch

from trainer.cli import doctor
from trainer.settings.overlay import load


@pytest.fixture
def config():
    return load({"run.device": "cpu"})


def by_name(lines) -> dict[str, doctor.Line]:
    return {line.name: line for line in lines}


def test_an_old_or_missing_package_is_named_with_the_command_that_mends_it(config, monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError(name)
        if name == "wandb":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "pydantic" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    asked = doctor.asked(extras=True)
    needs = {name: asked[name] for name in ("rich", "wandb", "pydantic", "safetensors")}
    monkeypatch.setattr(
        doctor, "asked", lambda extras=False: {n: r for n, r in needs.items() if extras or n != "wandb"}
    )
    lines = by_name(doctor.versions(config))
    assert lines["rich"].state == "bad" and lines["rich"].fix.startswith("pip install 'rich")
    assert lines["wandb"].state == "off" and lines["wandb"].fix == ""
    assert lines["pydantic"].state == "bad" and "needs" in lines["pydantic"].detail
    assert lines["safetensors"].state == "ok"


def test_attention_is_run_forward_and_backward_and_compared_with_math(config):
    lines = by_name(doctor.attention(config))
    assert lines["math"].state == "ok" and lines["sdpa flash"].state == "ok"
    assert lines["sdpa cuDNN"].state == "off", "cuDNN has no kernel for the CPU"


def test_a_wrong_attention_kernel_is_found(config, monkeypatch):
    real = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def wrong(q, k, v):
        calls.append(1)
        return real(q, k, v) * (1.0 if len(calls) == 1 else 1.1)  # the first call is the reference

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    lines = by_name(doctor.attention(config))
    assert lines["sdpa flash"].state == "bad" and lines["sdpa flash"].fix


def test_our_optimizers_take_real_steps(config):
    lines = list(islice(doctor.optimizers(config), 4))  # the others import their libraries, which takes seconds
    assert [line.name for line in lines] == ["adamw fp32", "adamw 24bit, 8bit", "adamw 16bit_sr, 4bit", "torch_adamw"]
    assert all(line.state == "ok" for line in lines)


def test_the_exit_code_says_whether_something_needed_is_broken(config, monkeypatch, capsys):
    def none(config):
        return iter(())

    for part in ("versions", "attention", "optimizers", "kernels", "disk"):
        monkeypatch.setattr(doctor, part, none)
    assert doctor.main(config) == 0 and "works here" in capsys.readouterr().out
    monkeypatch.setattr(
        doctor, "disk", lambda config: iter([doctor.Line("run folder", "bad", "full", "free some space")])
    )
    assert doctor.main(config) == 1
    out = capsys.readouterr().out
    assert "BAD" in out and "fix: free some space" in out and "Broken: run folder" in out


def test_disk_names_the_folder_it_looked_at(config, tmp_path):
    config.settle("run.output_dir", str(tmp_path / "new"), "test")
    assert str(tmp_path) in by_name(doctor.disk(config))["run folder"].detail
    assert not (tmp_path / "new").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_a_fused_attention_and_triton_work():
    config = load({})
    assert any(line.state == "ok" and line.name != "math" for line in doctor.attention(config))
    assert all(line.state == "ok" for line in doctor.kernels(config))
    assert by_name(doctor.card(config))["video memory"].state == "ok"
