"""Photos and prompts are encoded once, and again only where their content asks for it."""

import copy

import numpy as np
import pytest
import torch
from photos import finish, folder_of, noise_picture, settings
from PIL import Image

from trainer.data import crops, pictures
from trainer.data import photos as data
from trainer.data.encode import Encoder
from trainer.errors import ConfigError
from trainer.events import Notice, PhaseEnded
from trainer.files.store import Store, module_digest
from trainer.models import SD1, SDXL, vae
from trainer.policy import Drawing


@pytest.fixture(scope="module")
def parts():
    return SD1.tiny()


def encoder(parts, config, folder, **drawing):
    config.run.cache_dir = str(folder)
    return Encoder.of(parts, config, Drawing(**drawing), torch.device("cpu"))


def ensure(parts, config, folder, classes=None, prompts=(), **drawing):
    """(events, dataset, number of pictures encoded, number of prompts encoded)."""
    photos = data.scan(config, 64)
    events, dataset = finish(encoder(parts, config, folder, **drawing).dataset(photos, classes, config, prompts))
    encoded = {event.phase: int(event.detail.split()[0]) for event in events if isinstance(event, PhaseEnded)}
    return events, dataset, encoded["cache images"], encoded.get("cache text", 0)


def test_latents_are_the_distribution_that_diffusers_gives(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1, (64, 64)))
    _, dataset, *_ = ensure(parts, config, tmp_path)
    pixels = crops.pixels(Image.open(tmp_path / "photos" / "00.png"))[None]
    with torch.no_grad():
        expected = parts.vae.encode(pixels).latent_dist
    example = dataset.instance(0, 0)
    assert torch.equal(example.mean, expected.mean[0]) and torch.equal(example.std, expected.std[0])


def test_embeddings_are_those_of_the_family(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1))
    _, dataset, *_ = ensure(parts, config, tmp_path, prompts=["a red dog"])
    assert set(dataset.texts) == {"a photo of hta dog", "", "a red dog"}
    for prompt, values in dataset.texts.items():
        assert torch.equal(values["text"], parts.family.encode_text(parts, [prompt])["text"][0])


def test_a_second_run_encodes_nothing_and_reads_the_same(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos"), data__random_flip=True)
    _, first, pictures_first, prompts_first = ensure(parts, config, tmp_path)
    _, second, pictures_second, prompts_second = ensure(parts, config, tmp_path)
    assert (pictures_first, prompts_first, pictures_second, prompts_second) == (6, 2, 0, 0)
    for index in range(3):
        for variant in range(2):
            assert torch.equal(first.instance(index, variant).mean, second.instance(index, variant).mean)
    assert torch.equal(first.texts[""]["text"], second.texts[""]["text"])


def test_the_cache_survives_a_changed_learning_rate(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos"))
    ensure(parts, config, tmp_path)
    config.train.learning_rate, config.train.max_train_steps, config.prior.prior_loss_weight = 1e-3, 7, 0.5
    assert ensure(parts, config, tmp_path)[2:] == (0, 0)


def test_a_changed_photo_encodes_that_photo_only(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos"))
    ensure(parts, config, tmp_path)
    noise_picture((96, 80), 99).save(tmp_path / "photos" / "01.png")
    assert ensure(parts, config, tmp_path)[2] == 1
    (tmp_path / "photos" / "00.png").rename(tmp_path / "photos" / "zz.png")
    assert ensure(parts, config, tmp_path)[2] == 0  # content counts, names do not


def test_another_vae_resolution_or_crop_is_another_entry(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1))
    ensure(parts, config, tmp_path)
    assert ensure(parts, settings(tmp_path / "photos", data__resolution=32), tmp_path)[2] == 1
    assert (
        ensure(parts, settings(tmp_path / "photos", data__crop_jitter=0.2), tmp_path)[2] == 3
    )  # the plain view is there
    assert ensure(SD1.tiny(seed=1), config, tmp_path)[2:] == (1, 2)
    assert ensure(parts, config, tmp_path)[2:] == (0, 0)


def test_a_changed_prompt_encodes_that_prompt_only(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1))
    ensure(parts, config, tmp_path)
    config.data.identifier = "sks"
    assert ensure(parts, config, tmp_path)[2:] == (0, 1)


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_damaged_cache_files_are_made_again(parts, tmp_path, damage):
    config = settings(folder_of(tmp_path / "photos", 1))
    _, first, *_ = ensure(parts, config, tmp_path)
    (path,) = (tmp_path / "latents").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    events, second, encoded, _ = ensure(parts, config, tmp_path)
    assert encoded == 1 and torch.equal(first.instance(0, 0).mean, second.instance(0, 0).mean)
    assert any(isinstance(event, Notice) and "damaged" in event.text for event in events)
    assert ensure(parts, config, tmp_path)[2] == 0


def test_an_interrupted_run_leaves_whole_files_and_goes_on(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos"))
    stage = encoder(parts, config, tmp_path).dataset(data.scan(config, 64), None, config)
    next(stage), next(stage), next(stage)  # the start and two pictures
    stage.close()
    assert not list(tmp_path.rglob("*.part"))
    assert ensure(parts, config, tmp_path)[2] == 1


def test_a_photo_that_goes_or_changes_after_scanning_ends_in_one_clear_message(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 2))
    photos = data.scan(config, 64)
    noise_picture((96, 80), 7).save(tmp_path / "photos" / "01.png")
    with pytest.raises(ConfigError, match="has changed"):
        finish(encoder(parts, config, tmp_path).dataset(photos, None, config))
    (tmp_path / "photos" / "01.png").unlink()
    with pytest.raises(ConfigError, match="is not any more"):
        finish(encoder(parts, config, tmp_path).dataset(photos, None, config))


def test_with_the_caches_off_nothing_is_left_on_disk(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1), memory__cache_latents=False, memory__cache_text=False)
    _, dataset, *_ = ensure(parts, config, tmp_path / "cache")
    assert dataset.instance(0, 0).mean.shape == (4, 8, 8) and not list((tmp_path / "cache").rglob("*"))


def test_a_trained_text_encoder_gets_token_ids_and_no_embeddings(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1), train__train_text_encoder=True)
    _, dataset, _, prompts = ensure(parts, config, tmp_path)
    values = dataset.conditions(["a photo of hta dog", ""], [None, None])
    assert prompts == 0 and not dataset.texts
    assert torch.equal(values["input_ids"], parts.family.tokens(parts, ["a photo of hta dog", ""])["input_ids"])


def test_sdxl_rows_carry_pooled_text_and_their_own_sizes(tmp_path):
    parts = SDXL.tiny()
    config = settings(folder_of(tmp_path / "photos", 1, (128, 64)))
    _, dataset, *_ = ensure(parts, config, tmp_path)
    example = dataset.instance(0, 0)
    values = dataset.conditions([example.prompt, ""], [example, None])
    assert values["time_ids"].tolist() == [[64, 128, 0, 32, 64, 64], [64, 64, 0, 0, 64, 64]]
    expected = parts.family.encode_text(parts, [example.prompt])
    assert torch.equal(values["text"][0], expected["text"][0]) and torch.equal(
        values["pooled"][0], expected["pooled"][0]
    )
    denoised = parts.family.denoise(
        parts, values | {"sample": torch.zeros(2, 4, 8, 8), "timestep": torch.tensor([1, 2])}
    )
    assert denoised.shape == (2, 4, 8, 8)


def test_buckets_group_photos_by_shape_and_repeats_count(parts, tmp_path):
    folder_of(tmp_path / "photos" / "2_sks dog", 2, (96, 64))
    folder_of(tmp_path / "photos" / "1_sks dog tall", 1, (64, 128))
    config = settings(tmp_path / "photos", data__buckets=True, data__resolution=128)
    _, dataset, *_ = ensure(parts, config, tmp_path)
    assert sum(map(len, dataset.groups.values())) == 5
    for (height, width), indices in dataset.groups.items():
        assert {dataset.instance(i, 0).mean.shape for i in indices} == {(4, height, width)}
        values = dataset.conditions([""], [None]) | {
            "sample": torch.zeros(1, 4, height, width),
            "timestep": torch.tensor([5]),
        }
        assert parts.family.denoise(parts, values).shape == (1, 4, height, width)
    wide = next(shape for shape, indices in dataset.groups.items() if len(indices) == 4)
    assert wide[1] > wide[0]


def test_class_images_are_square_examples_of_their_own(parts, tmp_path):
    folder_of(tmp_path / "class", 4, (64, 80))
    config = settings(folder_of(tmp_path / "photos", 2), data__random_flip=True)
    classes = data.scan_class(tmp_path / "class", config, 64)
    _, dataset, encoded, _ = ensure(parts, config, tmp_path, classes)
    assert encoded == 2 * 2 + 4 and dataset.class_count == 4
    assert dataset.cls(0).prompt == "a photo of a dog" and "a photo of a dog" in dataset.texts


def test_masks_reach_latent_size_and_follow_a_flip(parts, tmp_path):
    folder_of(tmp_path / "photos", 1, (64, 64))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 16, 64))
    mask.save(tmp_path / "photos" / "00.mask.png")
    config = settings(tmp_path / "photos", data__masked_loss=True, data__random_flip=True)
    _, dataset, *_ = ensure(parts, config, tmp_path)
    plain, mirrored = dataset.instance(0, 0).mask, dataset.instance(0, 1).mask
    assert plain.shape == (1, 8, 8) and plain[0, 0].tolist() == [4, 4, 0, 0, 0, 0, 0, 0]
    assert torch.equal(mirrored, plain.flip(-1))


def test_an_unwritable_cache_is_refused_with_the_flag(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--cache_dir"):
        Store(tmp_path / "file" / "latents")


def test_the_vae_is_left_as_it_was(parts, tmp_path):
    before = module_digest(parts.vae)
    config = settings(folder_of(tmp_path / "photos", 1))
    ensure(parts, config, tmp_path, vae_dtype=torch.bfloat16)
    assert module_digest(parts.vae) == before and not parts.vae.use_tiling
    assert ensure(parts, config, tmp_path)[2] == 1  # bf16 latents are not taken for fp32 ones


def test_tiles_come_close_where_all_parts_of_a_picture_are_alike(parts):
    pixels = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, tiled = vae.encode_pixels(parts.vae, pixels)[0], vae.encode_pixels(parts.vae, pixels, 128)[0]
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.2 * whole.std()
    assert torch.equal(vae.encode_pixels(parts.vae, pixels, 256)[0], whole)  # one tile is the whole


def test_encoding_and_decoding_run_on_meta_tensors(parts):
    planned = copy.deepcopy(parts.vae).to("meta")
    mean, std = vae.encode_pixels(planned, torch.empty(1, 3, 128, 128, device="meta"), 64)
    assert mean.shape == std.shape == (1, 4, 16, 16) and mean.is_meta
    assert vae.decode_latents(planned, mean, 64).shape == (1, 3, 128, 128)


def test_flipped_latents_are_those_of_the_mirrored_photo(parts, tmp_path):
    config = settings(folder_of(tmp_path / "photos", 1, (64, 64)), data__random_flip=True)
    _, dataset, *_ = ensure(parts, config, tmp_path)
    mirrored = np.asarray(pictures.read(tmp_path / "photos" / "00.png").rgb)[:, ::-1].copy()
    mean, _ = vae.encode_pixels(parts.vae, crops.pixels(Image.fromarray(mirrored))[None])
    assert torch.equal(dataset.instance(0, 1).mean, mean[0])
