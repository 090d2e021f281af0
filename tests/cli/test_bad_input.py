"""Whatever a person can get wrong ends in one message with its fix and exit code 2, and nothing was written."""

import errno
import os
import shutil

import pytest
import torch
from photos import noise_picture
from safetensors.torch import save_file

from trainer.__main__ import main
from trainer.cli import commands
from trainer.errors import ConfigError
from trainer.models import SD1
from trainer.out import checkpoint
from trainer.settings import checks
from trainer.settings.dialects import meanings
from trainer.settings.overlay import load, read, write


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small model, two usable photos, and folders with everything that goes wrong."""
    folder = tmp_path_factory.mktemp("bad")
    SD1.pipeline(SD1.tiny()).save_pretrained(folder / "model")
    for name in ("photos", "corrupt", "empty", "full"):
        (folder / name).mkdir()
    for index in range(2):
        noise_picture((80, 64), index).save(folder / "photos" / f"{index}.png")
    whole = (folder / "photos" / "1.png").read_bytes()
    (folder / "corrupt" / "a.png").write_bytes(whole[: len(whole) // 2])
    (folder / "full" / "mine.txt").write_text("keep me")
    (folder / "junk.safetensors").write_text("no weights")
    for name in ("cut", "pickled"):
        shutil.copytree(folder / "model", folder / name)
    (weights,) = (folder / "cut" / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    for weights in (folder / "pickled" / "vae").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    (folder / "old.ckpt").write_bytes(b"pickle")
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, folder / "adapter.safetensors")
    return folder


@pytest.fixture
def refusal(place, monkeypatch, capsys):
    """refusal(words) -> what the command line answers; checks on the way that it is a refusal and wrote nothing."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(words, model="model", photos="photos"):
        before = sorted(path.relative_to(place) for path in place.rglob("*"))
        base = ["--model", model, "--instance_data_dir", photos, "--class_name", "dog", "--resolution", "64"]
        given = words.split()
        if "--output_dir" not in given:
            given += ["--output_dir", "out"]
        assert main([*base, *given, "--dashboard", "off"]) == 2
        assert sorted(path.relative_to(place) for path in place.rglob("*")) == before
        said = capsys.readouterr().err
        assert said.count("error: ") == 1 and said.count("fix: ") == 1 and "Traceback" not in said
        return said

    return run


@pytest.mark.parametrize(("photos", "said"), [
    ("nowhere", "there is no photo folder nowhere"),
    ("photoz", "did you mean photos?"),
    ("empty", "no photos in empty"),
    ("corrupt", "a.png is left out: damaged or cut short"),
    ("junk.safetensors", "is a file, not a folder of photos"),
])  # fmt: skip
def test_photos_that_cannot_be_used(refusal, photos, said):
    assert said in refusal("", photos=photos)


@pytest.mark.parametrize(("model", "said"), [
    ("no-such-model", "no model at 'no-such-model'"),
    ("owner/model", "not in the local cache and the hub cannot be reached"),
    ("old.ckpt", "is a pickle"),
    ("junk.safetensors", "is not a safetensors file"),
    ("adapter.safetensors", "is an adapter (LoRA), not a model"),
    ("cut", "is cut short"),
    ("pickled", "vae has no .safetensors weights"),
    ("empty", "is not a diffusers folder"),
])  # fmt: skip
def test_models_that_are_none(refusal, model, said):
    assert said in refusal("", model=model)


@pytest.mark.parametrize(("words", "said"), [
    ("--family sdxl", "leave --family out, or set it to sd1"),
    ("--vae owner/vae", "owner/vae is not in the local cache"),
    ("--vae empty", "no VAE at 'empty'"),
    ("--judge nonsense", "no judge is called 'nonsense'"),
    ("--judge dino:owner/dino", "owner/dino is not in the local cache"),
    ("--judge clip:nowhere", "there is no folder 'nowhere'"),
])  # fmt: skip
def test_other_models_a_run_would_need_are_looked_for_before_it_starts(refusal, words, said):
    assert said in refusal(words)


@pytest.mark.parametrize(("words", "said"), [
    ("--output_dir full", "output_dir full is not empty"),
    ("--output_dir old.ckpt", "output_dir old.ckpt is a file"),
    ("--output_dir /proc/run", "/proc/run cannot be written"),
    ("--cache_dir /proc/cache", "choose another --cache_dir"),
    ("--cache_dir old.ckpt/cache", "old.ckpt is a file"),
    ("--report_to tensorboard --logging_dir /proc/logs", "choose another --logging_dir"),
    ("--output_dir full --resume_from_checkpoint nowhere", "There is no checkpoint 'nowhere'"),
])  # fmt: skip
def test_places_that_cannot_take_a_run(refusal, place, words, said):
    assert said in refusal(words)
    assert (place / "full" / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(("words", "said"), [
    ("--learning_rate 5", "would destroy the model"),
    ("--learning_rate nan", "must be a finite number"),
    ("--offset_noise inf", "must be a finite number"),
    ("--prior_loss_weight -1", "must be at least 0"),
    ("--max_train_steps 0", "must be at least 1"),
    ("--seed 4294967296", "must be less than 4294967296"),
    ("--train_batch_size 4096", "must be at most 1024"),
    ("--resolution 100", "use --resolution 128"),
])  # fmt: skip
def test_absurd_numbers(refusal, words, said):
    assert said in refusal(words)


@pytest.mark.parametrize(("words", "said"), [
    ("--max_train_steps 5 --num_train_epochs 2", "contradict each other"),
    ("--formats lora_kohya", "needs an adapter"),
    ("--method dora --strength 0.5", "means nothing for DoRA"),
    ("--weights 24bit --optimizer adafactor", "use --optimizer adamw"),
    ("--stream state --optimizer prodigy", "cannot be combined"),
    ("--stream all --checkpointing off", "cannot be combined"),
    ("--method full --rank 8", "would have no effect"),
    ("--learing_rate 1e-6", "did you mean --learning_rate?"),
    ("--device cuda", "torch sees no CUDA card"),
    ("--masked_loss", "no photo has an alpha channel or a mask"),
])  # fmt: skip
def test_options_that_contradict_each_other_or_the_machine(refusal, words, said):
    if words == "--device cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA card")
    assert said in refusal(words)


@pytest.mark.parametrize("word", ["bf16", "fp16", "16bit", "16bit_rn"])
def test_weights_that_round_to_nearest_in_16_bits_cannot_be_chosen(refusal, word):
    assert "not one of auto, fp32, 24bit, 16bit_sr" in refusal(f"--weights {word}")


def test_a_file_with_an_unknown_setting_names_the_one_that_was_meant(refusal, place):
    (place / "mine.toml").write_text("[train]\nlearning_rat = 1e-6\n")
    assert "did you mean train.learning_rate?" in refusal("--config mine.toml")


FILES = {
    "empty": (b"", "holds no settings"),
    "only a comment": (b"# mine\n", "holds no settings"),
    "only a section": (b"[train]\n", "holds no settings"),
    "nested": (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deep"),
    "an unknown section": (b"[trian]\nlearning_rate = 1e-6\n", "did you mean [train]?"),
    "a number for a text": (b"[data]\nclass_name = 7\n", "class_name = 7 (file mine.toml): must be text"),
    "a number outside of its section": (b"class_name = 7\n", "did you mean data.class_name?"),
    "a run's, cut": (b"# All settings of this run, and\n[train]\nmax_train_steps = 3\n", "is cut short"),
    "bytes": (b"[data]\nclass_name = '\xff'\n", "byte 21 is no UTF-8"),
}


@pytest.mark.parametrize(("text", "said"), FILES.values(), ids=FILES)
def test_a_settings_file_that_says_nothing_or_nonsense(refusal, place, text, said):
    (place / "mine.toml").write_bytes(text)
    assert said in refusal("--config mine.toml")


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
@pytest.mark.parametrize("words", [
    "--config {}.toml",
    "--preset {}.toml",
    "--config_file {}.toml",
    "--dataset_config {}.toml",
    "--model {}.safetensors",
    "--vae {}.safetensors",
    "--sample_prompts {}.txt",
])  # fmt: skip
def test_a_pipe_or_device_behind_a_flag_is_never_waited_for(refusal, place, words):
    made = []
    for kind in ("toml", "safetensors", "txt"):
        os.mkfifo(place / f"pipe.{kind}")
        (place / f"zero.{kind}").symlink_to("/dev/zero")
        made += [place / f"pipe.{kind}", place / f"zero.{kind}"]
    try:
        for name in ("pipe", "zero"):
            assert f"{name}." in refusal(words.format(name))
    finally:
        for path in made:
            path.unlink()


def test_the_settings_that_a_run_writes_are_whole_only_with_their_last_line(tmp_path):
    config = load({"data.class_name": "dog"})
    write(config, config.provenance, tmp_path / "config.toml")
    lines = (tmp_path / "config.toml").read_text(encoding="utf-8").splitlines()
    assert read(tmp_path / "config.toml")["data.class_name"] == "dog"
    for kept in (len(lines) // 3, len(lines) - 1):
        (tmp_path / "config.toml").write_text("\n".join(lines[:kept]), encoding="utf-8")
        with pytest.raises(ConfigError, match="is cut short"):
            read(tmp_path / "config.toml")


def test_a_disk_without_room_for_the_model_is_refused_by_the_size_of_its_files(refusal, monkeypatch):
    class Usage:
        free = 100_000

    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: Usage)
    assert "this run writes at least 0.0" in refusal("")


def test_a_disk_that_fills_up_in_the_middle_is_one_message_too(place, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl")

    monkeypatch.setitem(commands.DO, "report", full)
    assert main(["report", str(place)]) == 2
    said = capsys.readouterr().err
    assert "the disk is full: runs/x/log.jsonl" in said and "--resume_from_checkpoint latest" in said


def test_a_preset_for_a_larger_card_names_the_one_that_fits():
    config = load({"preset": "24gb"})
    with pytest.raises(ConfigError, match=r"more than Small Card has \(8.0 GiB\)\n  fix: use --preset 8gb"):
        checks.card(config, 8 * 2**30, "Small Card")
    checks.card(load({"preset": "8gb"}), 8 * 2**30, "Small Card")


def test_a_line_made_for_diffusers_runs_without_xformers_and_says_so(monkeypatch):
    monkeypatch.setattr(meanings, "find_spec", lambda name: None)
    sets = meanings.xformers()
    assert sets.to("true") == {} and "torch's own attention" in sets.note


def test_parameters_that_share_memory_are_saved_each_with_its_own(tmp_path):
    book = torch.arange(4.0)
    state = {"engine.taken": torch.tensor(1), "optimizer.0.1.qmap": book, "optimizer.0.2.qmap": book}
    batches = {"generator": torch.get_rng_state()}
    point = checkpoint.save(tmp_path, checkpoint.State(3, state, None, batches, {}, {}))
    found = checkpoint.load(point).engine
    assert torch.equal(found["optimizer.0.1.qmap"], book) and torch.equal(found["optimizer.0.2.qmap"], book)
