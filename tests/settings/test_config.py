"""Settings: layers and their origins, what is refused, and the way into a run folder and back."""

import shlex
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.settings import overlay
from trainer.settings.checks import card, check, space, writable
from trainer.settings.config import Config, knobs
from trainer.settings.effect import idle, prior_is_on


@pytest.fixture
def photos(tmp_path: Path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    return str(folder)


def toml(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(flags: dict, **options) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check(overlay.load(flags), **options)
    return caught.value


def test_flags_beat_the_file_the_file_beats_the_preset_and_the_preset_beats_defaults(tmp_path):
    file = toml(tmp_path / "mine.toml", "[memory]\nvram_gb = 10\n[train]\nseed = 5\nlearning_rate = 1e-6\n")
    config = overlay.load({"preset": "12gb", "train.seed": "7"}, {"train.seed": "flag --seed"}, file)
    assert (config.train.seed, config.train.learning_rate, config.memory.vram_gb) == (7, 1e-6, 10)
    assert config.train.train_batch_size == 1 and config.train.max_grad_norm == 1.0
    assert config.provenance["train.seed"] == "flag --seed"
    assert config.provenance["memory.vram_gb"] == f"file {file}"
    assert config.provenance["train.train_batch_size"] == "preset 12gb"
    assert "train.max_grad_norm" not in config.provenance and not config.chosen("train.max_grad_norm")
    assert config.chosen("train.seed") and config.chosen("train.learning_rate")
    assert not config.chosen("train.train_batch_size"), "a preset is not a person's wish"


def test_a_file_may_name_its_preset_and_a_flag_replaces_it(tmp_path):
    file = toml(tmp_path / "mine.toml", 'preset = "8gb"\n')
    assert overlay.load(file=file).memory.vram_gb < 8
    assert 8 < overlay.load({"preset": "12gb"}, file=file).memory.vram_gb < 12


def test_every_preset_is_short_valid_and_leaves_room_on_its_card():
    names = list(overlay.presets())
    assert names == ["4gb", "6gb", "8gb", "12gb", "16gb", "24gb"]
    for name, path in overlay.presets().items():
        config = overlay.load({"preset": name})
        size = int(name.removesuffix("gb"))
        assert 0.85 * size <= config.memory.vram_gb <= 0.97 * size
        assert len(path.read_text().splitlines()) <= 25
        held = {key for key, origin in config.provenance.items() if origin.startswith("preset")}
        allowed = {"memory.vram_gb", "train.train_batch_size", "train.gradient_accumulation_steps"}
        assert held <= allowed, "a preset never says how to learn"


def test_an_own_toml_file_works_as_a_preset(tmp_path):
    file = toml(tmp_path / "laptop.toml", "[memory]\nvram_gb = 3\n")
    config = overlay.load({"preset": str(file)})
    assert config.memory.vram_gb == 3 and config.provenance["memory.vram_gb"] == "preset laptop"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nlearning_rat = 1\n", "train.learning_rate"),
        ("[training]\nlearning_rate = 1e-6\n", "train.learning_rate"),
        ("learning_rate = 1e-6\n", "train.learning_rate"),
        ("[memory]\nweights = 24bit\n", "strings need quotes"),
        ('[memory]\nweights = "25bit"\n', "24bit"),
    ],
)
def test_a_mistake_in_a_file_is_answered_with_the_way_to_mend_it(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        overlay.load(file=toml(tmp_path / "mine.toml", text))
    assert words in caught.value.fix and "mine.toml" in caught.value.what


def test_a_missing_file_and_an_unknown_preset_are_named():
    with pytest.raises(ConfigError, match=r"no file nowhere\.toml"):
        overlay.load(file=Path("nowhere.toml"))
    with pytest.raises(ConfigError, match="did you mean 12gb"):
        overlay.load({"preset": "12g"})


def test_all_objections_of_the_schema_are_told_at_once_with_their_origin():
    with pytest.raises(ConfigError) as caught:
        overlay.load({"train.max_train_steps": "0", "train.seed": "x", "data.resolution": 100000})
    text = str(caught.value)
    assert "train.max_train_steps" in text and "at least 1" in text
    assert "train.seed" in text and "whole number" in text
    assert "data.resolution" in text and "at most 4096" in text and "flag --resolution" in text


def test_names_are_unique_or_shared_on_purpose_and_aliases_collide_with_nothing():
    names = [key.rpartition(".")[2] for key in knobs()]
    assert {name for name in names if names.count(name) > 1} == {"guidance_scale"}
    aliases = [a for key, info in knobs().items() for a in info.json_schema_extra["aliases"] if a != key.split(".")[1]]
    assert len(aliases) == len(set(aliases)) and not set(aliases) & set(names)
    assert all(info.description for info in knobs().values())


def test_without_a_model_the_photos_decide_between_the_demo_and_stable_diffusion(photos):
    assert overlay.load({}).model.name == "demo"
    mine = overlay.load({"data.instance_data_dir": photos})
    assert mine.model.name == "stable-diffusion-v1-5/stable-diffusion-v1-5" and not mine.chosen("model.name")
    assert overlay.load({"data.instance_data_dir": photos, "model.name": "demo"}).model.name == "demo"
    assert overlay.load({"model.family": "sdxl"}).model.name is None, "a plan takes the family's own configuration"


# ------------------------------------------------------------------------------------------------- no effect


@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        ({"train.text_encoder_lr": 1e-6}, "--train_text_encoder"),
        ({"lora.rank": 8}, "--method lora"),
        ({"train.lr_num_cycles": 3}, "--lr_scheduler cosine_with_restarts"),
        ({"train.lr_power": 2}, "--lr_scheduler polynomial"),
        ({"train.lr_warmup_steps": 10}, "--lr_scheduler constant_with_warmup"),
        ({"prior.with_prior_preservation": False, "prior.prior_loss_weight": 0.5}, "--with_prior_preservation"),
        ({"train.optimizer": "bnb_adamw8bit", "memory.moments": "8bit"}, "--optimizer adamw"),
        ({"data.crop_variants": 8}, "--crop random"),
        ({"train.ema_decay": 0.9}, "--ema"),
        ({"train.max_grad_norm": 0, "train.clipping": "previous"}, "--max_grad_norm"),
        ({"memory.stream": "off", "memory.resident_units": 3}, "--stream"),
        ({"checkpoint.checkpoints_total_limit": 2}, "--checkpointing_steps"),
        ({"sample.num_validation_images": 0, "sample.steps": 5}, "--num_validation_images"),
        ({"run.logging_dir": "logs"}, "--report_to"),
        ({"train.scale_lr": True}, "--train_batch_size"),
        (
            {"train.train_text_encoder": True, "train.text_encoder_stop_step": 9, "train.max_train_steps": 9},
            "less than 9",
        ),
    ],
)
def test_a_setting_without_effect_is_refused_with_what_would_give_it_one(flags, fix):
    error = refused(flags)
    assert "no effect" in error.what and fix in error.fix


def test_an_anchor_needs_no_class_images():
    assert check(overlay.load({"prior.anchor": 0.003, "prior.with_prior_preservation": False})) == []


def test_the_same_settings_are_fine_where_they_count():
    flags = {"train.method": "lora", "lora.rank": 8, "train.lr_scheduler": "polynomial", "train.lr_power": 2, "train.lr_warmup_steps": 5,
             "train.train_text_encoder": True, "train.text_encoder_lr": 1e-5, "train.ema": True, "train.ema_decay": 0.9}  # fmt: skip
    assert check(overlay.load(flags)) == []


def test_an_idle_setting_at_its_default_is_only_noted():
    notices = check(overlay.load({"train.lr_warmup_steps": "0", "lora.rank": 16}))
    assert len(notices) == 2 and all("no effect" in notice for notice in notices)


def test_an_idle_setting_of_a_preset_is_nobodys_mistake(tmp_path):
    file = toml(tmp_path / "p.toml", "[lora]\nrank = 4\n")
    assert check(overlay.load({"preset": str(file)})) == []


def test_what_diffusers_tolerates_is_noted_on_its_own_lines_and_refused_on_ours(photos):
    flags = {"data.instance_data_dir": photos, "data.instance_prompt": "x", "prior.class_data_dir": "classes"}
    assert "prior.class_data_dir" in check(overlay.load(flags), tolerant=True)[0]
    assert "prior.class_data_dir" in refused(flags).what


@pytest.mark.parametrize(("method", "rate", "optimizer", "words"), [
    ("full", 1e-4, "adamw", ("--learning_rate 1e-4 is far", "full fine-tuning usually takes", "--method lora")),
    ("lora", 2e-6, "adamw", ("an adapter usually takes, 1e-4 to 5e-4", "little will be learned", "--method full")),
    ("lora", 1e-3, "adamw", ()),
    ("full", 1e-5, "adamw", ()),
    ("lora", 1.0, "prodigy", ()),
])  # fmt: skip
def test_a_rate_that_is_ten_times_off_for_its_method_is_said(photos, method, rate, optimizer, words):
    flags = {"model.name": "a/model", "data.instance_data_dir": photos, "data.class_name": "dog"}
    flags |= {"train.method": method, "train.learning_rate": rate, "train.optimizer": optimizer}
    said = "\n".join(check(overlay.load(flags)))
    assert all(word in said for word in words)
    assert ("usually takes" in said) == bool(words)


def test_prior_preservation_follows_from_the_method_and_a_named_class(photos):
    mine = {"data.instance_data_dir": photos, "data.instance_prompt": "x"}
    assert prior_is_on(overlay.load({})), "the built-in subject names its class"
    assert not prior_is_on(overlay.load(mine))
    assert prior_is_on(overlay.load(mine | {"data.class_name": "dog"}))
    assert not prior_is_on(overlay.load(mine | {"data.class_name": "dog", "train.method": "lora"}))
    assert prior_is_on(overlay.load(mine | {"prior.with_prior_preservation": True}))


# ---------------------------------------------------------------------------------------------- contradictions, paths


@pytest.mark.parametrize(
    ("flags", "what", "fix"),
    [
        ({"train.max_train_steps": 5, "train.num_train_epochs": 5}, "contradict", "keep one"),
        ({"prior.prior_loss_weight": 0}, "ignores them", "--no-with_prior_preservation"),
        ({"train.lr_scheduler": "constant_with_warmup"}, "no warm-up", "--lr_warmup_steps"),
        (
            {"train.lr_scheduler": "cosine", "train.lr_warmup_steps": 9, "train.max_train_steps": 9},
            "leaves nothing",
            "shorten",
        ),
        ({"export.formats": ["lora_kohya"]}, "adapter", "--method lora"),
        ({"train.optimizer": "prodigy", "memory.weights": "24bit"}, "24bit", "--optimizer adamw"),
        ({"train.optimizer": "torch_adamw", "prior.anchor": 0.003}, "base model's weights", "--optimizer adamw"),
        ({"train.method": "dora", "prior.anchor": 0.003}, "magnitudes", "--method lora"),
        ({"prior.anchor": 0.003, "train.adam_weight_decay": 0.1}, "instead of towards 0", "leave it out"),
        ({"train.learning_rate": 0.5}, "destroy", "1e-6"),
        ({"train.method": "lora", "train.learning_rate": 5}, "destroy", "1e-4"),
        ({"data.resolution": 500}, "multiple of 8", "512"),
        ({"model.name": "some/model"}, "no photos", "--instance_data_dir"),
        ({"model.family": "sdxl"}, "which sdxl model", "--model"),
        ({"data.instance_data_dir": "no/such/folder"}, "no photo folder", "--instance_data_dir"),
        ({"checkpoint.resume_from_checkpoint": "latest"}, "which run", "--output_dir"),
    ],
)
def test_a_contradiction_is_refused_before_anything_is_loaded(flags, what, fix):
    error = refused(flags)
    assert what in error.what and fix in error.fix


def test_prodigy_may_use_a_rate_of_one():
    assert check(overlay.load({"train.optimizer": "prodigy", "train.learning_rate": 1.0})) == []


def test_a_mistyped_photo_folder_is_answered_with_its_neighbour(photos):
    assert "did you mean photos?" in refused({"data.instance_data_dir": photos[:-2]}).fix


def test_a_file_is_neither_a_photo_folder_nor_an_output_folder(tmp_path):
    file = toml(tmp_path / "f", "x")
    assert "is a file" in refused({"data.instance_data_dir": str(file)}).what
    assert "is a file" in refused({"run.output_dir": str(file)}).what
    assert "is a file" in refused({"run.output_dir": str(file / "below")}).what


def test_a_full_output_folder_is_refused_unless_resumed_or_accepted_and_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    flags = {"run.output_dir": str(tmp_path)}
    assert "not empty" in refused(flags).what
    check(overlay.load(flags | {"run.overwrite": True}))
    check(overlay.load(flags | {"checkpoint.resume_from_checkpoint": "latest"}))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_checking_creates_nothing(tmp_path):
    check(overlay.load({"run.output_dir": str(tmp_path / "a" / "b")}))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(ConfigError, match="cannot be written"):
        writable(Path("/proc/run") if Path("/proc").exists() else Path("/"))


def test_a_disk_too_small_for_the_exports_is_found_before_training(tmp_path, photos, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=3 * 10**9))
    flags = {"data.instance_data_dir": photos, "data.class_name": "dog", "run.output_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"3\.0 GB free"):
        space(overlay.load(flags), fp16_gb=2.1)
    space(overlay.load(flags | {"train.method": "lora"}), fp16_gb=2.1)
    space(overlay.load({"run.output_dir": str(tmp_path / "run")}), fp16_gb=0.05)  # the demo is small


def test_a_preset_larger_than_the_card_is_refused_with_the_one_that_fits():
    with pytest.raises(ConfigError, match=r"preset 12gb.*(?s:.*)--preset 8gb"):
        card(overlay.load({"preset": "12gb"}), 8 * 2**30, "RTX 3060 Ti")
    card(overlay.load({"preset": "8gb"}), 8 * 2**30, "RTX 3060 Ti")
    card(overlay.load({}), 8 * 2**30, "RTX 3060 Ti")


# ------------------------------------------------------------------------------------------------- written and read


def test_a_resolved_configuration_comes_back_from_its_file(tmp_path):
    config = overlay.load(
        {"preset": "12gb", "train.method": "lora", "lora.rank": 8, "data.class_name": 'dog "Rex" \\ é\n'}
    )
    config.settle("train.learning_rate", 1e-4, "sd1 default")
    config.settle("prior.with_prior_preservation", False, "sd1 default")
    config.settle("export.formats", ["lora_kohya"], "sd1 default")
    overlay.write(config, config.provenance, tmp_path / "config.toml")
    back = overlay.load(file=tmp_path / "config.toml")
    assert back.model_dump() == config.model_dump()
    assert check(back) == []
    text = (tmp_path / "config.toml").read_text()
    assert "learning_rate = 0.0001  # sd1 default" in text and "# vram_gb = 11.2  # preset 12gb" in text


def test_settings_without_effect_and_those_of_one_run_are_written_as_comments(tmp_path):
    config = overlay.load({"run.output_dir": str(tmp_path), "train.num_train_epochs": 3})
    config.settle("train.max_train_steps", 15, "3 epochs")
    overlay.write(config, config.provenance, tmp_path / "config.toml")
    back = overlay.load(file=tmp_path / "config.toml")
    assert back.run.output_dir is None and back.train.max_train_steps == 15 and back.train.num_train_epochs is None
    assert not any(back.chosen(key) for key in idle(back))
    check(back)


def test_the_config_of_a_run_resumes_that_run(tmp_path):
    overlay.write(Config(), {}, tmp_path / "config.toml")
    (tmp_path / "log.jsonl").write_text("")
    again = overlay.load({"checkpoint.resume_from_checkpoint": "latest"}, file=tmp_path / "config.toml")
    assert again.run.output_dir == str(tmp_path)
    check(again)


def test_effective_settings_are_those_that_somebody_decided():
    config = overlay.load({"train.seed": 3})
    config.settle("train.max_train_steps", 800, "sd1 default")
    assert overlay.effective(config.model_dump(), config.provenance) == [
        ("model.name", '"demo"', "built-in demo"),
        ("train.max_train_steps", "800", "sd1 default"),
        ("train.seed", "3", "flag --seed"),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prior.class_data_dir": "photos"}, "one place"),
        ({"prior.class_data_dir": "photos/class"}, "inside one another"),
        ({"prior.class_data_dir": "."}, "inside one another"),
        ({"prior.class_data_dir": "link"}, "one place"),
        ({"run.output_dir": "photos/run"}, "inside one another"),
        ({"run.output_dir": "link/run"}, "inside one another"),
        ({"run.cache_dir": "photos/../photos"}, "one place"),
        ({"run.output_dir": "out", "run.cache_dir": "out/cache"}, "inside one another"),
        ({"prior.class_data_dir": "out/class", "run.output_dir": "out"}, "inside one another"),
    ],
)
def test_photos_class_images_output_and_cache_are_four_places(tmp_path, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    flags = {"data.instance_data_dir": "photos", "data.class_name": "dog"} | more
    error = refused(flags)
    assert words in error.what and "name another folder with --" in error.fix


def test_folders_of_a_list_are_photos_folders_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    flags = {"data.subsets": ["2 x one", "two"], "data.class_name": "dog"}
    for more in ({"run.output_dir": "two/run"}, {"prior.class_data_dir": "two"}, {"run.cache_dir": "one"}):
        assert "the photos" in refused(flags | more).what


def test_neighbours_are_four_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    flags = {"data.instance_data_dir": "photos", "data.class_name": "dog", "prior.class_data_dir": "photos-class"}
    check(overlay.load(flags | {"run.output_dir": "runs/one", "run.cache_dir": "runs/cache"}))


def test_what_the_planner_decided_is_no_wish_when_the_settings_are_read_back(tmp_path):
    made = overlay.load({"memory.moments": "8bit", "data.class_name": "dog"})
    made.settle("memory.weights", "24bit", overlay.PLANNER)
    made.settle("sample.batch_size", 2, overlay.PLANNER)
    overlay.write(made, made.provenance, tmp_path / "config.toml")
    text, again = (tmp_path / "config.toml").read_text(), overlay.load(file=tmp_path / "config.toml")
    assert '# weights = "24bit"  # planner' in text
    assert again.memory.weights == "auto" and again.sample.batch_size is None and again.memory.moments == "8bit"
    assert again.chosen("memory.moments") and not again.chosen("memory.weights")


def test_what_a_preset_set_is_the_next_presets_to_set(tmp_path):
    made = overlay.load({"preset": "8gb", "data.class_name": "dog", "train.train_batch_size": 3})
    overlay.write(made, made.provenance, tmp_path / "config.toml")
    same, larger = (overlay.load(flags, file=tmp_path / "config.toml") for flags in ({}, {"preset": "24gb"}))
    assert same.memory.vram_gb == made.memory.vram_gb
    assert larger.memory.vram_gb == overlay.load({"preset": "24gb"}).memory.vram_gb > made.memory.vram_gb
    assert larger.train.train_batch_size == 3, "what a person set stays"


def test_a_runs_settings_name_whole_paths_and_hub_ids_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a model", "cat", "org/name"):
        (tmp_path / folder).mkdir(parents=True)
    made = overlay.load(
        {
            "model.name": "a model",
            "model.vae": "stabilityai/sd-vae-ft-mse",
            "data.subsets": ["3 x cat = a photo of hta cat"],
            "run.cache_dir": "not/there/yet",
        }
    )
    overlay.write(made, made.provenance, tmp_path / "config.toml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = overlay.load(file=tmp_path / "config.toml")
    assert again.model.name == str(tmp_path / "a model") and again.model.vae == "stabilityai/sd-vae-ft-mse"
    assert again.data.subsets == [f"3 x {tmp_path / 'cat'} = a photo of hta cat"]
    assert again.run.cache_dir == str(tmp_path / "not" / "there" / "yet")
    named = overlay.load({"model.name": "org/name"})
    overlay.write(named, named.provenance, tmp_path / "config.toml")
    assert overlay.load(file=tmp_path / "config.toml").model.name == "org/name"


def test_the_line_that_repeats_a_run_can_be_pasted_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, place = overlay.load({"data.class_name": "dog"}), Path("it's a run")
    place.mkdir()
    overlay.write(made, made.provenance, place / "config.toml")
    line = (place / "config.toml").read_text().splitlines()[0].partition("Repeat it: ")[2]
    assert shlex.split(line) == ["python", "-m", "trainer", "--config", str(tmp_path / "it's a run" / "config.toml")]
