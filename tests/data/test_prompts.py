"""Prompts that would defeat the method are refused, odd ones are said, stray articles are mended."""

import pytest
from photos import folder_of

from trainer.data import photos as data
from trainer.data import prompts
from trainer.data.account import Photo, PhotoSet
from trainer.errors import ConfigError
from trainer.settings import overlay
from trainer.settings.config import Config


def config(**knobs) -> Config:
    """Settings that a person typed: data__class_name="dog" is [data] class_name."""
    return overlay.load({name.replace("__", "."): value for name, value in knobs.items()})


def photos(*texts, words=""):
    return PhotoSet(tuple(Photo(f"p/{i}.png", text, (64, 64), str(i), words=words) for i, text in enumerate(texts)))


def odd(found, settings, prior=True):
    return prompts.check(settings, found, prior)


def mended(settings, captions=()):
    return list(prompts.mend(settings, lambda: list(captions)))


@pytest.mark.parametrize(
    "knobs, photo, why",
    [
        ({"prior__class_prompt": "a photo of a cat"}, "a photo of a cat", "says nothing that the class prompt"),
        ({"prior__class_prompt": "a photo of a cat"}, "Picture of the CAT", "says nothing that the class prompt"),
        ({"prior__class_prompt": "a photo of a zwx cat"}, "a photo of zwx cat", "says nothing that the class prompt"),
        ({"prior__class_prompt": "hta cat"}, "a photo of hta cat", "contains the identifier 'hta'"),
        ({"prior__class_prompt": "a photo of HTA cats"}, "a photo of hta cat", "contains the identifier 'hta'"),
        ({"data__class_name": "cat", "data__identifier": "Cat"}, "a photo of Cat cat", "and so is the class"),
        ({"data__class_name": "cat"}, "a cat", "says nothing that the class prompt"),
    ],
)
def test_what_pulls_the_class_and_the_subject_apart_is_refused_unless_it_is_insisted_on(knobs, photo, why):
    settings = config(**knobs)
    with pytest.raises(ConfigError) as error:
        odd(photos(photo), settings)
    assert why in error.value.what and "--allow_prompts" in error.value.fix
    settings.data.allow_prompts = True
    odd(photos(photo), settings)
    odd(photos(photo), config(**knobs), prior=False)


@pytest.mark.parametrize("photo", ["a photo of hta cat", "hta", "a photo of sks cat", "my ohwx cat on a sofa"])
def test_a_prompt_with_a_word_of_its_own_is_neither_refused_nor_odd(photo):
    settings = config(data__class_name="cat", data__instance_prompt=photo)
    mended(settings)
    assert odd(photos(photo), settings) == []


def test_common_words_alone_are_odd_and_the_example_shows_how(tmp_path):
    (said,) = odd(photos("my dog"), config(data__instance_prompt="my dog"), prior=False)
    assert "no word of its own" in said and "'a photo of hta dog'" in said
    (said,) = odd(photos("my dog"), config(data__class_name="cat", data__instance_prompt="my dog"), prior=False)
    assert "and not the class" in said
    for settings in (config(data__class_name="dog"), config()):
        (said,) = odd(photos("my fluffy dog"), settings, prior=False)
        assert "not the class" not in said


def test_what_is_refused_names_the_flag_that_was_typed_and_an_example_of_this_class():
    with pytest.raises(ConfigError) as error:
        odd(photos("a photo of hta hta dog"), config(data__class_name="hta dog"))
    assert "leave it out of --class_name" in error.value.fix
    with pytest.raises(ConfigError) as error:
        odd(photos("a photo of a cat"), config(prior__class_prompt="a photo of a cat"))
    assert "'a photo of hta cat'" in error.value.fix


def test_a_subjects_name_in_the_classs_is_named_with_the_two_flags():
    (said,) = mended(config(data__class_name="ohwx man"))
    assert "names one subject and no class" in said and "--identifier ohwx --class_name man" in said
    assert mended(config(data__class_name="ohwx man", data__identifier="ohwx")) == [], "refused where it does harm"


def test_what_holds_no_letter_was_not_typed():
    settings = config(data__class_name="  ", data__instance_prompt=" ", prior__class_prompt="", data__identifier=" ")
    assert mended(settings) == []
    assert settings.data.class_name is None is settings.data.instance_prompt is settings.prior.class_prompt
    assert not settings.chosen("data.instance_prompt"), "the account names the place that prompts come from"
    settings.data.class_name = "dog"
    assert prompts.instance_prompt(settings.data) == "a photo of dog"
    with pytest.raises(ConfigError) as error:
        odd(photos("a photo of dog"), settings)
    assert "'a photo of hta dog'" in error.value.fix


@pytest.mark.parametrize(
    "typed, taken",
    [
        ("a cat", "cat"),
        ("An Apple", "Apple"),
        ("the old man", "old man"),
        ("my cat", "cat"),
        ("a photo of a cat", "cat"),
        ("Photo of old cat", "old cat"),
        ("cat", "cat"),
        (" a  cat ", "cat"),
    ],
)
def test_an_article_before_the_class_is_taken_off(typed, taken):
    settings = config(data__class_name=typed)
    said = mended(settings)
    assert settings.data.class_name.strip() == taken and bool(said) == (typed != taken)
    assert prompts.instance_prompt(settings.data) == f"a photo of hta {taken}"
    assert settings.chosen("data.class_name"), "it is still the person's own"


@pytest.mark.parametrize("noun", ["cats", "running shoes", "glasses", "people", "old men"])
def test_a_plural_is_named_and_gets_no_article(noun):
    settings = config(data__class_name=noun)
    assert "reads like a plural" in mended(settings)[0]
    assert prompts.class_prompt(settings) == f"a photo of {noun}"


@pytest.mark.parametrize("noun", ["cat", "bus", "glass", "cactus", "iris", "dress", "gas", "specimen"])
def test_a_single_thing_that_ends_in_s_is_no_plural(noun):
    assert mended(config(data__class_name=noun)) == []


def test_the_identifier_is_read_off_the_persons_own_words():
    for knobs, captions, expected in (
        ({"data__instance_prompt": "a photo of sks dog"}, (), "sks"),
        ({"data__instance_prompt": "ohwx man, portrait", "data__class_name": "man"}, (), "ohwx"),
        ({"data__instance_prompt": "my dog"}, (), "hta"),
        ({}, ["a photo of TOK cat asleep", "TOK cat"], "tok"),
        ({"data__class_name": "dog"}, ["sks dog on a sofa", "sks dog", "a dog"], "sks"),
        ({"data__class_name": "dog"}, ["a dog", "zwx dog", "another dog"], "hta"),
        ({"data__instance_prompt": "a photo of sks dog", "data__identifier": "zwx"}, (), "zwx"),
        ({"data__instance_prompt": "it's a photo of my dog's hta bed"}, (), "hta"),
        ({"data__instance_prompt": "a goldendoodle called ohwx"}, (), "ohwx"),
        ({}, ["a labradoodle, hta, asleep", "hta, a labradoodle", "a labradoodle called hta"], "hta"),
    ):
        settings = config(**knobs)
        mended(settings, captions)
        assert settings.data.identifier == expected, knobs


def test_captions_without_the_identifier_are_counted_and_named():
    found = photos("hta dog", "hta dog asleep", "a dog in snow", words="1.txt")
    (said,) = odd(found, config(data__class_name="dog"))
    assert "1 of 3 captions does without the identifier 'hta' (2.png): that photo teaches it nothing" in said
    said = odd(photos("a sofa", "a bed", words="x.csv"), config(data__class_name="dog", data__identifier="hta"))
    assert "2 of 2 captions" in said[0]
    (said,) = odd(photos("a dog on a sofa", "a dog in snow", words="x.txt"), config(data__class_name="dog"))
    assert "no caption has 'hta'" in said and "go into ordinary words: write 'hta' before the word for it" in said
    (said,) = odd(photos("rex on a sofa", "rex in snow", words="x.txt"), config(data__class_name="dog"))
    assert "go into the words in all of them (rex)" in said, "which may be meant"


def test_a_caption_that_says_no_more_than_the_class_is_named():
    found = photos("hta dog asleep", "a photo of the dog", "hta dog in snow", words="x.txt")
    said = [text for text in odd(found, config(data__class_name="dog")) if "no more than the class prompt" in text]
    assert said == ["1.png: the caption says no more than the class prompt 'a photo of a dog'"]
    assert not any("class prompt" in text for text in odd(found, config(data__class_name="dog"), prior=False))


def test_words_that_every_caption_has_beside_the_identifier_are_named():
    found = photos(*(f"hta dog on a red sofa, {more}" for more in ("asleep", "awake", "barking")), words="x.txt")
    (said,) = odd(found, config(data__class_name="dog"))
    assert "red, sofa" in said
    assert odd(photos("hta dog", "hta dog asleep", "hta dog", words="x.txt"), config(data__class_name="dog")) == []


def test_a_webuis_signs_in_captions_are_said_to_be_words_here():
    prompts = ("hta dog, (red:1.2) sofa", "hta dog BREAK grass", "hta <lora:dog_v1:0.8>", "hta, 16:9 (wide)")
    said = odd(photos(*prompts, words="x.txt"), config(data__class_name="dog"))
    assert [text for text in said if "trained as words" in text] == [
        "(red:1.2), BREAK, <lora:dog_v1:0.8> in prompts mean something to other programs only: here they are trained as words"
    ]


@pytest.mark.parametrize("place", ["[filewords]", "[name]", "{name}", "{}", "{class}"])
def test_a_place_that_nobody_fills_is_said_to_be_a_word_here(place):
    said = odd(photos(f"hta dog, {place}"), config(data__class_name="dog"))
    assert said == [f"{place} in prompts mean something to other programs only: here they are trained as words"]
    for meant in ("hta dog [in the snow, at night]", "hta dog {in the snow}"):
        assert odd(photos(meant), config(data__class_name="dog")) == []


@pytest.mark.parametrize("name", ["\U0001f436", "a", "the"])
def test_the_example_of_a_refused_prompt_is_one_that_is_not_refused(name):
    asked = config(data__class_name="dog", data__identifier=name)
    with pytest.raises(ConfigError) as refused:
        prompts.check(asked, photos(f"a photo of {name} dog"), True)
    assert "as in 'a photo of hta dog'" in refused.value.fix


def test_the_word_behind_the_identifier_is_the_class_though_nobody_named_one():
    of_dogs = photos("hta dog asleep", "an hta dog in snow", "hta dog, barking", words="x.txt")
    assert odd(of_dogs, config(), prior=False) == []
    in_red = photos("hta dog, red", "hta puppy, red", "hta wears red", words="x.txt")
    (said,) = odd(in_red, config(), prior=False)
    assert "every caption says red beside 'hta'" in said


def test_placeholders_are_filled_and_other_braces_stay():
    settings = config(
        data__class_name="dog",
        data__instance_prompt="a {wet} photo of {identifier} {class_name}",
        sample__validation_prompt=["[trigger] on the moon {}"],
    )
    mended(settings)
    assert settings.data.instance_prompt == "a {wet} photo of hta dog" == prompts.instance_prompt(settings.data)
    assert settings.sample.validation_prompt == ["hta on the moon {}"]
    with pytest.raises(ConfigError, match="place for a class name"):
        mended(config(data__instance_prompt="{identifier} {class_name}"))


def test_ai_toolkits_trigger_in_captions_is_the_identifier(tmp_path):
    folder_of(tmp_path, 1)
    (tmp_path / "00.txt").write_text("[trigger] dog")
    settings = config(data__instance_data_dir=str(tmp_path), data__class_name="dog", data__identifier="zwx")
    assert data.scan(settings, 64).prompts == ["zwx dog"]


def test_a_prompt_that_the_text_encoder_cuts_off_says_what_is_lost():
    long = "hta dog " + " ".join(["very"] * 72) + " small wooden boat, sunset"
    (said,) = odd(photos("hta dog", long), config(data__class_name="dog"))
    assert "1.png is too long" in said and "75 tokens are read and not 'wooden boat, sunset'" in said
    assert "--max_token_length 150" in said
    assert odd(photos("hta dog", long), config(data__class_name="dog", model__max_token_length=150)) == []
    assert prompts.cut_off("hta dog " + "very " * 73) == ""
    assert prompts.cut_off("дом " * 40), "letters of other alphabets are several tokens each"


def test_the_default_identifier_is_one_that_nothing_speaks_against():
    from trainer.models.sd.text import tokenizer
    from trainer.prior.identifier import warnings_for

    assert warnings_for(Config().data.identifier, "dog", tokenizer()) == []


def test_a_typed_prompt_counts_before_a_folders_name_but_not_before_captions(tmp_path):
    folder_of(tmp_path / "10_hta dog", 2)
    (tmp_path / "10_hta dog" / "00.txt").write_text("hta dog asleep")
    found = data.scan(config(data__instance_data_dir=str(tmp_path), data__instance_prompt="my hta dog"), 64)
    assert [(photo.prompt, photo.words) for photo in found.photos] == [
        ("hta dog asleep", "00.txt"),
        ("my hta dog", "flag --instance_prompt"),
    ]
    assert any("1 of 2 photos have captions, which count before 'my hta dog'" in text for text in found.problems)
    assert "1 x 'my hta dog' (flag --instance_prompt)" in list(found.lines())
