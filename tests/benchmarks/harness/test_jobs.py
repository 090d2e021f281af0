"""Jobs are other programs: they end when told, with everything they started."""

import sys

import psutil
from safetensors import safe_open
from trainer.benchmarks.harness import jobs
from trainer.benchmarks.harness.timing import Options

TINY = Options(tiny=True, repeats=1, warmup=0)


def test_a_job_that_takes_too_long_is_ended_with_everything_it_started(tmp_path):
    code = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    ran = jobs.run([sys.executable, "-S", "-c", code], timeout=3)
    assert ran.code == -1 and "stopped after 3 s" in ran.tail and ran.seconds < 30
    child = int(ran.tail.split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_the_materials_model_is_spelled_as_the_hub_spells_it(tmp_path):
    made = jobs.material(TINY, tmp_path)
    with safe_open(made.model / "text_encoder/model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
    assert (made.model / "tokenizer/vocab.json").is_file() and (made.model / "tokenizer/merges.txt").is_file()
    assert len(list(made.photos.iterdir())) == jobs.PHOTOS
