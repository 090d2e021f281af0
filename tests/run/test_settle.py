"""Who decides what a person left open: the built-in demo, the family, the photos; each decision with its origin."""

import pytest

from trainer.data.photos import Photo, PhotoSet
from trainer.errors import ConfigError
from trainer.models import DEMO, SD1
from trainer.run import settle
from trainer.settings import checks, overlay


def config(**flags: object):
    """Settings as after reading a command line; `data__class_name` stands for data.class_name."""
    return overlay.load({key.replace("__", "."): value for key, value in flags.items()})


def photos(*prompts: str, repeats: int = 1) -> PhotoSet:
    return PhotoSet(
        tuple(Photo(f"{i}.png", prompt, (64, 64), str(i), repeats=repeats) for i, prompt in enumerate(prompts))
    )


def test_without_photos_the_built_in_subject_names_itself_and_its_prompts():
    made = config()
    settle.subject(made)
    assert made.data.class_name and made.provenance["data.instance_data_dir"] == "built-in photos"
    prompts = made.sample.validation_prompt
    assert prompts[0] == f"a photo of {made.data.identifier} {made.data.class_name}"
    assert made.data.class_name not in prompts[3] and len(prompts) == 4  # what has nothing to do with the subject
    assert all(made.value(key) == value for key, value in settle.DEMO_WAY.items())
    assert made.train.max_train_steps == settle.DEMO_STEPS


def test_whoever_chooses_how_the_demo_keeps_its_class_has_what_they_chose_alone():
    """Part of the found way beside a choice of one's own would be neither."""
    made = config(prior__num_class_images=4)
    settle.subject(made)
    assert made.prior.by == "images" and made.prior.anchor == 0 and made.train.text_part == "all"
    assert made.train.train_text_encoder  # the demo's text encoder passes over rare words
    short = config(train__max_train_steps=7)
    settle.subject(short)
    assert short.train.max_train_steps == 7 and short.prior.by == "prediction"


def test_the_demos_text_encoder_stays_as_the_person_said():
    made = config(train__train_text_encoder=False)
    settle.subject(made)
    assert not made.train.train_text_encoder
    adapter = config(train__method="lora")
    settle.subject(adapter)
    assert not adapter.train.train_text_encoder


def test_own_photos_are_never_named_after_the_built_in_subject(tmp_path):
    made = config(data__instance_data_dir=str(tmp_path))
    settle.subject(made)
    assert made.data.class_name is None and not made.sample.validation_prompt


@pytest.mark.parametrize(
    "flags,preserves",
    [
        ({"data__class_name": "dog"}, True),
        ({}, False),  # nothing is known of the class
        ({"data__class_name": "dog", "train__method": "lora"}, False),  # an adapter forgets little
        ({"data__class_name": "dog", "prior__with_prior_preservation": False}, False),
        ({"prior__class_prompt": "a dog"}, True),
    ],
)
def test_the_class_is_preserved_where_the_whole_model_learns_and_the_class_has_a_name(flags, preserves):
    made = config(data__instance_data_dir="photos", **flags)
    settle.learning(made, SD1)
    assert made.prior.with_prior_preservation is preserves


def test_the_family_decides_rates_and_says_so():
    made = config(data__instance_data_dir="photos", data__class_name="dog")
    settle.learning(made, SD1)
    assert made.train.learning_rate == SD1.defaults.lr_full and made.prior.num_class_images == SD1.defaults.class_images
    assert made.provenance["train.learning_rate"] == "sd1 default"
    assert made.data.instance_prompt == "a photo of hta dog" and made.prior.class_prompt == "a photo of a dog"


def test_a_rate_that_was_given_is_the_text_encoders_too():
    given = config(train__learning_rate=3e-6, train__train_text_encoder=True, data__class_name="dog")
    settle.learning(given, SD1)
    assert given.train.text_encoder_lr == 3e-6
    left_open = config(train__train_text_encoder=True, data__class_name="dog")
    settle.learning(left_open, SD1)
    assert left_open.train.text_encoder_lr == SD1.defaults.text_learning_rate("full")


def test_prodigy_finds_its_rate_itself():
    made = config(train__optimizer="prodigy", train__train_text_encoder=True)
    settle.learning(made, SD1)
    assert made.train.learning_rate == 1.0 and made.train.text_encoder_lr == 1.0


def test_an_adapter_is_exported_as_one_and_a_whole_model_as_a_pipeline():
    adapter, whole = config(train__method="dora"), config()
    settle.learning(adapter, SD1)
    settle.learning(whole, SD1)
    assert all(name.startswith("lora") for name in adapter.export.formats)
    assert not any(name.startswith("lora") for name in whole.export.formats) and whole.export.formats


def test_the_demo_draws_with_less_guidance_unless_somebody_chose():
    made = config(model__name="demo", sample__guidance_scale=5.0)
    settle.learning(made, DEMO)
    assert made.sample.guidance_scale == 5.0 and made.prior.guidance_scale == settle.DEMO_GUIDANCE
    other = config(model__name="somebody/else")
    settle.learning(other, SD1)
    assert other.prior.guidance_scale == config().prior.guidance_scale


def test_epochs_count_repeats_and_whole_steps():
    made = config(train__num_train_epochs=3, train__train_batch_size=2, train__gradient_accumulation_steps=2)
    settle.schedule(made, SD1, photos("a", "b", "c", repeats=3))  # 9 shown, 4 a step: 3 steps an epoch
    assert made.train.max_train_steps == 9 and made.provenance["train.max_train_steps"] == "3 epochs of 9 photos"


def test_steps_that_were_given_win_over_the_familys():
    given, left_open = config(train__max_train_steps=7), config(train__method="lora")
    settle.schedule(given, SD1, photos("a"))
    settle.schedule(left_open, SD1, photos("a"))
    assert given.train.max_train_steps == 7 and left_open.train.max_train_steps == SD1.defaults.steps_lora


def test_the_photos_own_prompts_are_drawn_four_at_most_and_none_where_no_picture_is_wanted():
    made = config()
    settle.schedule(made, SD1, photos("a", "b", "b", "c", "d", "e"))
    assert made.sample.validation_prompt == ["a", "b", "c", "d"]
    without = config(sample__num_validation_images=0)
    settle.schedule(without, SD1, photos("a"))
    assert not without.sample.validation_prompt


def test_a_run_without_a_folder_gets_one_of_today_with_its_words_and_the_cache_lies_beside_it():
    made = config(data__identifier="sks", data__class_name="coffee cup")
    settle.places(made)
    assert made.run.output_dir.endswith("-sks-coffee-cup") and made.run.output_dir.startswith("runs")
    assert made.run.cache_dir == "runs/cache"


def test_a_default_name_never_lands_in_an_older_run(tmp_path):
    taken, empty = tmp_path / "run", tmp_path / "empty"
    for folder in (taken, tmp_path / "run-2"):
        folder.mkdir()
        (folder / "log.jsonl").touch()
    empty.mkdir()
    assert settle.unused(taken).name == "run-3"
    assert settle.unused(empty) == empty and settle.unused(tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"train__num_train_epochs": 4, "train__lr_warmup_steps": 500, "train__lr_scheduler": "cosine"}, "of 8 steps"),
        ({"train__lr_warmup_steps": 900, "train__lr_scheduler": "linear"}, "leaves nothing of 800 steps"),
        (
            {"train__num_train_epochs": 4, "train__lr_num_cycles": 9, "train__lr_scheduler": "cosine_with_restarts"},
            "more often than 8 steps",
        ),
        (
            {"train__num_train_epochs": 4, "train__train_text_encoder": True, "train__text_encoder_stop_step": 8},
            "would have no effect",
        ),
    ],
)
def test_what_depends_on_the_steps_is_checked_when_they_are_known(flags, words):
    made = config(data__class_name="dog", **flags)
    checks.check(made, files=False)
    settle.learning(made, SD1)
    with pytest.raises(ConfigError, match=words):
        settle.schedule(made, SD1, photos("a", "b"))


def test_a_resumed_run_keeps_the_precisions_it_was_begun_with_unless_somebody_names_others():
    state = {"policy": {"weights": "24bit", "moments": "8bit", "optimizer": "adamw"}}
    made = config(memory__moments="4bit")
    settle.as_begun(made, state)
    assert (made.memory.weights, made.memory.moments) == ("24bit", "4bit") and not made.chosen("memory.weights")


@pytest.mark.parametrize(
    ("said", "flags", "seed"),
    [
        ({}, {}, 7),  # from before class images had a seed of their own: they were drawn from the run's
        ({"made_of": {"settings": {"prior.class_seed": None}}}, {}, None),
        ({"made_of": {"settings": {"prior.class_seed": 5}}}, {}, 5),  # the run before this one took it over
        ({}, {"prior__class_seed": 3}, 3),
        ({}, {"prior__class_data_dir": "mine"}, None),
    ],
)
def test_a_resumed_run_goes_on_with_its_class_images(said, flags, seed):
    made = config(train__seed=7, prior__with_prior_preservation=True, **flags)
    settle.as_begun(made, said)
    assert made.prior.class_seed == seed
