"""A line made for another program means here what it means there, and what it leaves out is said."""

import json
import shlex

import pytest

from trainer.cli import parse as cli
from trainer.errors import ConfigError
from trainer.models import SD1, SD2, SDXL, adapters
from trainer.settings.checks import check
from trainer.settings.dialects import kohya
from trainer.settings.dialects.programs import PROGRAMS

MODEL = "--pretrained_model_name_or_path m.safetensors"
KOHYA = f"{MODEL} --train_data_dir img --resolution 512 --max_train_steps 20"
DIFFUSERS = (
    f"{MODEL} --instance_data_dir photos --instance_prompt 'a photo of sks dog' --resolution 512 --max_train_steps 20"
)


def parse(line: str) -> cli.Command:
    return cli.parse(shlex.split(line))


def said(line: str) -> str:
    return "\n".join(parse(line).notices)


def refused(line: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(line).config()
    return caught.value


# ------------------------------------------------------------------------------------------- which program


@pytest.mark.parametrize(("line", "script"), [
    (f"accelerate launch --mixed_precision=fp16 train_dreambooth_lora.py {DIFFUSERS}", "train_dreambooth_lora.py"),
    (f"accelerate launch --num_cpu_threads_per_process 1 ./sd-scripts/train_db.py {KOHYA}", "train_db.py"),
    (f"CUDA_VISIBLE_DEVICES=0 python3 sdxl_train_network.py {KOHYA}", "sdxl_train_network.py"),
    (f"train train_network.py {KOHYA}", "train_network.py"),
    ("python 'C:\\kohya_ss\\sd-scripts\\sdxl_train.py' " + KOHYA, "sdxl_train.py"),
    (f"{KOHYA} --network_module networks.lora", "train_network.py"),
    (KOHYA, "train_db.py"),
    (f"{KOHYA} --learning_rate_te1 1e-5", "sdxl_train.py"),
    (DIFFUSERS, "train_dreambooth.py"),
    (f"{DIFFUSERS} --rank 8", "train_dreambooth_lora.py"),
    (f"{DIFFUSERS} --rank 8 --output_kohya_format", "train_dreambooth_lora_sdxl.py"),
])  # fmt: skip
def test_a_line_names_its_program_by_its_script_or_by_its_flags(line, script):
    assert parse(line).program is PROGRAMS[script] and parse(line).foreign


# as on the pages of diffusers' examples/dreambooth: README_flux2, README_sd3, README_lumina2, README_z_image
FLOWS = (
    "--gradient_checkpointing --cache_latents --resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=4 "
    "--optimizer=adamW --use_8bit_adam --learning_rate=1e-4 --report_to=tensorboard --lr_scheduler=constant "
    "--lr_warmup_steps=0 --max_train_steps=500 --validation_prompt='A photo of sks dog' --validation_epochs=25 --seed=0"
)


@pytest.mark.parametrize(("script", "more", "method"), [
    ("train_dreambooth_sd3.py", "--weighting_scheme=logit_normal --precondition_outputs=0", "full"),
    ("train_dreambooth_lora_sd3.py", "--max_sequence_length=256", "lora"),
    ("train_dreambooth_lora_lumina2.py", "--weighting_scheme=none", "lora"),
    ("train_dreambooth_lora_flux2_klein.py", "--do_fp8_training --guidance_scale=1 --offload", "lora"),
    ("train_dreambooth_lora_z_image.py", "--use_aspect_ratio_buckets", "lora"),
])  # fmt: skip
def test_lines_for_flow_matching_models_run_where_their_noise_is_the_familys(script, more, method):
    line = f"accelerate launch {script} {DIFFUSERS} {FLOWS} {more}".replace(" --max_train_steps 20", "")
    config = parse(line).config()
    assert (config.train.method, config.data.resolution, config.memory.moments) == (method, 1024, "8bit")
    assert config.prior.guidance_scale == config.sample.guidance_scale == 7.5, "the flag is a distilled model's there"
    assert "weighting_scheme" in refused(f"{line} --weighting_scheme=cosmap").what
    assert "precondition_outputs" in refused(f"{line} --precondition_outputs=1").what
    assert config.data.buckets == ("buckets" in more)


def test_a_line_of_ours_is_nobody_elses():
    for line in ("", "--preset 12gb --model m --instance_data_dir photos", "--rank 4", "--method lora --unet_lr 1e-4"):
        assert parse(line).program is None and not parse(line).foreign


def test_the_launcher_of_a_pasted_line_settles_the_precision_and_nothing_else_of_it_is_read():
    line = f"accelerate launch --num_processes 1 --mixed_precision bf16 train_dreambooth.py {DIFFUSERS}"
    assert parse(line).config().train.mixed_precision == "bf16"
    assert parse(line + " --mixed_precision no").config().train.mixed_precision == "no"


def test_a_script_that_trains_something_else_is_named():
    error = refused(f"accelerate launch train_controlnet.py {MODEL}")
    assert "train_controlnet.py" in error.what and "train_dreambooth.py" in error.fix


# ------------------------------------------------------------------------------------------- what it means there


def test_train_db_trains_the_text_encoder_unless_told_otherwise():
    assert parse(KOHYA).config().train.train_text_encoder and "text encoder is trained" in said(KOHYA)
    assert not parse(f"{KOHYA} --no-train_text_encoder").config().train.train_text_encoder
    assert not parse(f"{KOHYA} --stop_text_encoder_training=-1").config().train.train_text_encoder
    assert not parse(f"accelerate launch sdxl_train.py {KOHYA}").config().train.train_text_encoder


def test_stopping_the_text_encoder_is_taken_over_and_beyond_the_end_stops_nothing():
    command = parse(f"{KOHYA} --stop_text_encoder_training 5")
    assert command.config().train.text_encoder_stop_step == 5
    check(command.config(), tolerant=True, files=False)
    late = parse(f"{KOHYA} --stop_text_encoder_training 20")
    assert late.config().train.text_encoder_stop_step is None and late.config().train.train_text_encoder


def test_networks_lora_has_kohyas_rank_alpha_start_and_modules():
    line = f"{KOHYA} --network_module networks.lora"
    lora = parse(line).config().lora
    assert (lora.rank, lora.alpha, lora.init) == (4, 1, "kaiming")
    assert lora.targets == kohya.TRANSFORMERS and lora.text_targets == kohya.TEXT
    assert parse(line).config().train.train_text_encoder
    assert "rank 4" in said(line) and "alpha 1" in said(line)
    given = parse(f"{line} --network_dim 32 --network_alpha 16").config().lora
    assert (given.rank, given.alpha) == (32, 16)
    assert parse(f"{line} --network_dim 8 --network_alpha 0").config().lora.alpha is None, "there, 0 means the rank"
    unet = parse(f"{line} --network_train_unet_only")
    assert not unet.config().train.train_text_encoder and check(unet.config(), tolerant=True, files=False) == []
    assert parse("--method lora --rank 8").config().lora.alpha is None, "ours stays ours"


@pytest.mark.parametrize(("script", "family", "denoiser", "texts"), [
    ("train_network.py", SD1, 192, [72]),
    ("train_network.py", SD2, 192, [138]),
    # kohya's 986 count the six of the first encoder's last layer, too, which SDXL never reads and nothing trains
    ("sdxl_train_network.py", SDXL, 722, [72 - 6, 192]),
])  # fmt: skip
def test_networks_lora_adapts_as_many_modules_of_the_public_models_as_in_kohyas_scripts(
    script, family, denoiser, texts
):
    parts, lora = (
        family.meta(),
        parse(f"accelerate launch {script} {KOHYA} --network_module networks.lora").config().lora,
    )
    adapters.inject(parts, lora, text=True)
    found = [name for name, _ in adapters.layers(parts)]
    counts = [sum(name.startswith(f"{part}.") for name in found) for part in parts.modules() if part != "vae"]
    assert counts == [denoiser, *texts] and len(found) == denoiser + sum(texts)


def test_wide_convolutions_get_adapters_where_network_args_ask():
    line = f"{KOHYA} --network_module networks.lora --network_dim 8 --network_args conv_dim=4 conv_alpha=2"
    lora = parse(line).config().lora
    assert (lora.conv_rank, lora.conv_alpha) == (4, 2) and set(kohya.RESNETS) <= set(lora.targets)
    assert parse(line.replace(" conv_alpha=2", "")).config().lora.conv_alpha == 1
    assert "LyCORIS" in refused(f"{KOHYA} --network_module networks.lora --network_args algo=locon").fix


def test_with_kohyas_spelling_epochs_win_over_steps():
    command = parse(f"{KOHYA} --max_train_epochs 3")
    assert command.config().train.max_train_steps is None and command.config().train.num_train_epochs == 3
    assert "--max_train_epochs decides" in "\n".join(command.notices)


@pytest.mark.parametrize(("rates", "denoiser", "text", "second"), [
    ("--learning_rate 1e-4 --unet_lr 2e-4 --text_encoder_lr 5e-5", 2e-4, 5e-5, None),
    ("--learning_rate 1e-4 --unet_lr 2e-4", 2e-4, 1e-4, None),
    ("--learning_rate 1e-4 --text_encoder_lr 1e-5 2e-5", 1e-4, 1e-5, 2e-5),
    ("--learning_rate 1e-4 --text_encoder_lr 1e-5 1e-5", 1e-4, 1e-5, None),
    ("--learning_rate 1e-4 --text_encoder_lr1 1e-5 --text_encoder_lr2 3e-5", 1e-4, 1e-5, 3e-5),
    ("--learning_rate 1e-4", 1e-4, None, None),
])  # fmt: skip
def test_rates_of_a_line_from_the_front_end_are_put_together(rates, denoiser, text, second):
    train = parse(f"{KOHYA} --network_module networks.lora {rates}").config().train
    assert (train.learning_rate, train.text_encoder_lr, train.text_encoder_2_lr) == (denoiser, text, second)


def test_a_text_encoder_at_rate_zero_is_not_trained():
    line = f"{KOHYA} --network_module networks.lora --unet_lr 1e-4 --text_encoder_lr 0"
    assert not parse(line).config().train.train_text_encoder


def test_sdxl_train_takes_a_rate_for_each_text_encoder():
    line = f"accelerate launch sdxl_train.py {KOHYA} --train_text_encoder --learning_rate_te1 1e-5 --learning_rate_te2 2e-5"
    train = parse(line).config().train
    assert (train.text_encoder_lr, train.text_encoder_2_lr) == (1e-5, 2e-5)


def test_a_folder_of_class_images_switches_prior_preservation_on(tmp_path):
    (tmp_path / "reg" / "1_dog").mkdir(parents=True)
    command = parse(f"{KOHYA} --reg_data_dir {tmp_path / 'reg'}")
    prior = command.config().prior
    assert prior.with_prior_preservation and prior.class_data_dir == str(tmp_path / "reg")
    assert prior.class_prompt == "dog" and "'dog'" in "\n".join(command.notices)
    assert parse(f"{KOHYA} --reg_data_dir {tmp_path / 'reg'} --class_name cat").config().prior.class_prompt is None


def test_the_penultimate_text_layer_is_taken_over():
    assert parse(f"{KOHYA} --clip_skip 2").config().model.clip_skip == 2
    assert parse(f"{KOHYA} --clip_skip 1").config().model.clip_skip == 1


def test_kohyas_adafactor_line_is_what_runs_here():
    line = f"{KOHYA} --optimizer_type Adafactor --optimizer_args scale_parameter=False relative_step=False warmup_init=False"
    assert parse(line).config().train.optimizer == "adafactor"
    assert "relative_step=False" in refused(line.replace("relative_step=False", "relative_step=True")).fix
    assert "relative_step=False" in said(f"{KOHYA} --optimizer_type Adafactor")


@pytest.mark.parametrize("line", [f"{KOHYA} --network_module networks.lora", DIFFUSERS], ids=["kohya", "diffusers"])
def test_a_warm_up_beside_a_constant_schedule_does_nothing_as_there(line):
    command = parse(f"{line} --lr_scheduler constant --lr_warmup_steps 500")
    check(command.config(), tolerant=True, files=False)
    assert "has no effect" in "\n".join(command.notices)
    assert parse(f"{line} --lr_scheduler cosine --lr_warmup_steps 5").config().train.lr_warmup_steps == 5


def test_a_warm_up_may_be_a_share_of_the_steps():
    assert parse(f"{KOHYA} --lr_scheduler cosine --lr_warmup_steps 0.1").config().train.lr_warmup_share == 0.1


def test_a_diffusers_lora_script_trains_an_adapter_of_rank_4_though_its_line_says_neither():
    config = parse(f"accelerate launch train_dreambooth_lora.py {DIFFUSERS} --learning_rate 1e-4").config()
    assert (config.train.method, config.lora.rank, config.lora.alpha, config.lora.init) == ("lora", 4, None, "gaussian")


def test_a_diffusers_line_has_no_class_images_without_the_flag_and_reads_no_captions(tmp_path):
    config = parse(f"{DIFFUSERS} --class_prompt 'a dog'").config()
    assert config.prior.with_prior_preservation is False and config.data.captions is False
    (tmp_path / "a.txt").write_text("left over")
    line = DIFFUSERS.replace("photos", str(tmp_path))
    assert "--captions" in said(line) and "--captions" not in said(DIFFUSERS)


def test_epochs_of_a_diffusers_line_count_the_class_images_that_it_trains_on():
    prior = " --with_prior_preservation --class_prompt 'a dog'"
    config = parse(DIFFUSERS.replace("--max_train_steps 20", "--num_train_epochs 2") + prior).config()
    assert (config.train.max_train_steps, config.prior.num_class_images) == (200, 100)


def test_the_folder_of_downloaded_models_is_not_the_cache_of_latents():
    assert parse(f"{DIFFUSERS} --cache_dir models").config().run.cache_dir is None
    assert "HF_HOME" in said(f"{DIFFUSERS} --cache_dir models")
    assert parse("--cache_dir mine").config().run.cache_dir == "mine"


def test_defaults_that_differ_are_named_in_one_line_with_the_flag_that_sets_each():
    (line,) = [n for n in parse(MODEL + " --instance_data_dir p --instance_prompt x").notices if "left out" in n]
    for flag in (
        "--train_batch_size 4",
        "--crop random",
        "--learning_rate 5e-6",
        "--num_train_epochs 1",
        "--checkpointing_steps 500",
    ):
        assert flag in line
    assert "class images" not in line and "warm-up" not in line, "what has no effect there is not named"
    more = said(
        MODEL
        + " --instance_data_dir p --with_prior_preservation --class_prompt x --lr_scheduler cosine --max_train_steps 9"
    )
    assert "--num_class_images 100" in more and "--lr_warmup_steps 500" in more and "--num_train_epochs" not in more


def test_a_line_of_shivams_fork_brings_its_subject_and_its_pictures(tmp_path):
    concept = {
        "instance_prompt": "photo of zwx dog",
        "class_prompt": "photo of a dog",
        "instance_data_dir": "zwx",
        "class_data_dir": "dogs",
    }
    file = tmp_path / "concepts_list.json"
    file.write_text(json.dumps([concept]))
    line = (
        f"accelerate launch train_dreambooth.py {MODEL} --pretrained_vae_name_or_path=vae --with_prior_preservation "
        "--num_class_images=50 --max_train_steps=800 --save_interval=400 --save_sample_prompt='photo of zwx dog' "
        f"--n_save_sample=2 --save_infer_steps=30 --hflip --not_cache_latents --concepts_list={file}"
    )
    found = parse(line).config()
    assert (found.data.instance_data_dir, found.data.instance_prompt, found.data.random_flip) == (
        "zwx",
        "photo of zwx dog",
        True,
    )
    assert (found.prior.class_data_dir, found.prior.class_prompt) == ("dogs", "photo of a dog")
    assert (found.model.vae, found.checkpoint.checkpointing_steps, found.sample.num_validation_images) == (
        "vae",
        400,
        2,
    )
    assert found.sample.validation_prompt == ["photo of zwx dog"] and "--not_cache_latents has no effect" in said(line)
    file.write_text(json.dumps([concept, concept]))
    assert "one subject" in refused(line).what and "--subsets" in refused(line).fix
    file.unlink()
    assert "no such JSON file" in refused(line).what


def test_a_local_folder_stands_for_a_data_set(tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    line = (
        f"accelerate launch train_dreambooth_lora_sdxl.py {MODEL} --instance_prompt x --dataset_name {tmp_path / 'set'}"
    )
    data = parse(line).config().data
    assert data.instance_data_dir == str(tmp_path / "set" / "train") and not data.captions, (
        "it reads captions by --caption_column"
    )
    assert parse(f"{line} --caption_column text").config().data.captions
    assert "hub" in refused(f"{MODEL} --dataset_name some/photos").what
    assert "metadata.jsonl" in refused(f"{line} --caption_column words").fix


def test_a_file_of_ours_beneath_a_foreign_line_is_not_overruled_by_that_programs_defaults(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\ntrain_text_encoder = false\n[lora]\nrank = 32\n")
    config = parse(f"train_network.py {KOHYA} --config {tmp_path / 'mine.toml'}").config()
    assert config.lora.rank == 32 and not config.train.train_text_encoder
