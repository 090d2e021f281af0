"""The command line: its grammar, the lines of other trainers, help, explanations and exit codes."""

import ast
import logging
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.cli import explain
from trainer.cli import parse as cli
from trainer.cli.flags import flags
from trainer.cli.help import page
from trainer.errors import ConfigError
from trainer.settings.checks import check
from trainer.settings.config import knobs
from trainer.settings.dialects import diffusers, kohya, meanings
from trainer.settings.dialects.programs import TOLERATED, foreign_names

ROOT = Path(__file__).parent.parent.parent
FLAG = r"(?<![\w(-])--([a-z][a-z0-9_.-]*[a-z0-9])(?![\w:-])"  # and not a CSS variable


def parse(line: str) -> cli.Command:
    return cli.parse(shlex.split(line))


def refused(line: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(line).config()
    return caught.value


# ------------------------------------------------------------------------------------------------------ grammar


def test_no_words_mean_train_with_nothing_set():
    command = parse("")
    assert command.name == "train" and command.values == {} and command.config().model_dump() == cli.load().model_dump()


@pytest.mark.parametrize(
    "flag", ["--learning_rate ", "--learning-rate=", "--train.learning_rate ", "--lr ", "--unet_lr="]
)
def test_a_setting_answers_to_all_its_names(flag):
    assert parse(f"train {flag}1e-6").config().train.learning_rate == 1e-6


@pytest.mark.parametrize(("line", "value"), [
    ("--captions", True), ("--captions True", True), ("--no-captions", False), ("--no_captions", False),
    ("--captions false", False), ("--captions=off", False),
])  # fmt: skip
def test_switches_take_every_usual_form(line, value):
    assert parse(line).config().data.captions is value


def test_lists_take_words_or_commas_and_prompts_keep_theirs():
    config = parse("--formats diffusers,single_file --prompt 'a dog, sitting' 'a cat' --seed 3").config()
    assert config.export.formats == ["diffusers", "single_file"]
    assert config.sample.validation_prompt == ["a dog, sitting", "a cat"] and config.train.seed == 3


def test_none_unsets_and_minus_one_is_a_number():
    assert parse("--snr_gamma none").config().train.snr_gamma is None
    assert parse("--seed -1").config().train.seed == -1


@pytest.mark.parametrize(("line", "fix"), [
    ("--learning_rat 1", "--learning_rate?"),
    ("--guidance_scale 3", "--sample.guidance_scale"),
    ("--with-prior-preservatio", "with_prior_preservation"),
    ("--use_8bit_adm", "use_8bit_adam"),
    ("--seed", "--seed VALUE"),
    ("--seed --ema", "--seed=VALUE"),
    ("--no-seed", "--seed VALUE"),
    ("--captions maybe", "--no-captions"),
    ("--prompt", "--prompt VALUE"),
    ("-seed 3", "--seed?"),
    ("pictures", "--instance_data_dir"),
    ("trian --seed 3", "train"),
    ("--method lra", "lora"),
    ("--mem_eff_attn --attention math", "leave one of them out"),
    ("explain", "explain WORD"),
    ("watch a b", "leave out"),
    ("sample run --learning_rate 1", "leave it out"),
    ("--weighted_captions", "leave it out"),
    ("--network_module lycoris.kohya", "--method lora"),
    ("--optimizer_type Lion", "adamw8bit"),
    ("--resolution 512,768", "--buckets"),
    ("--resolution large", '"large"'),
    ("--sample_prompts no_such.txt", "--prompt"),
    ("--dataset_name org/photos", "--instance_data_dir"),
])  # fmt: skip
def test_a_mistake_is_answered_with_the_way_to_mend_it(line, fix):
    assert fix in str(refused(line))


# ------------------------------------------------------------------------------------------- lines of other trainers

DIFFUSERS = """
--pretrained_model_name_or_path=stable-diffusion-v1-5/stable-diffusion-v1-5 --instance_data_dir={photos} --class_data_dir={photos}-class
--output_dir={out} --with_prior_preservation --prior_loss_weight=1.0 --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog"
--resolution=512 --train_batch_size=1 --sample_batch_size=1 --gradient_accumulation_steps=1 --gradient_checkpointing --use_8bit_adam
--learning_rate=5e-6 --lr_scheduler="constant" --lr_warmup_steps=0 --num_class_images=200 --max_train_steps=800 --num_train_epochs=1
--center_crop --snr_gamma=5.0 --offset_noise --seed=0 --max_grad_norm=1.0 --allow_tf32 --report_to=wandb --mixed_precision=fp16
--checkpointing_steps=500 --checkpoints_total_limit=2 --resume_from_checkpoint=latest --validation_prompt="a sks dog in a bucket"
--num_validation_images=4 --validation_steps=100 --adam_beta1 0.9 --adam_beta2 0.999 --adam_weight_decay 1e-2 --adam_epsilon 1e-08
--lr_num_cycles 1 --lr_power 1.0 --dataloader_num_workers 0 --push_to_hub --hub_token x --hub_model_id y --logging_dir logs --local_rank -1
--set_grads_to_none --prior_generation_precision fp32 --pre_compute_text_embeddings --tokenizer_max_length 77 --skip_save_text_encoder
--text_encoder_use_attention_mask --validation_images a.png b.png --class_labels_conditioning timesteps --tokenizer_name z
--validation_scheduler DDPMScheduler --enable_xformers_memory_efficient_attention --scale_lr
"""


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def test_a_full_line_of_diffusers_script_runs_unchanged(photos, tmp_path):
    command = parse(DIFFUSERS.format(photos=photos, out=tmp_path / "out"))
    config = command.config()
    notices = command.notices + check(config, tolerant=command.foreign)
    assert config.model.name == "stable-diffusion-v1-5/stable-diffusion-v1-5" and config.data.crop == "center"
    assert config.memory.moments == "8bit" and config.train.optimizer == "adamw"
    assert config.memory.checkpointing == "blocks"
    assert config.memory.attention == ("xformers" if meanings.find_spec("xformers") else "auto")
    assert config.train.offset_noise == 0.1 and config.run.report_to == ["wandb"]
    assert config.train.max_train_steps == 800 and config.train.num_train_epochs is None
    for name in ("push_to_hub", "local_rank", "tokenizer_name", "num_train_epochs", "set_grads_to_none", "lr_power"):
        assert sum(name in notice for notice in notices) == 1, "each meaningless flag is answered by one line"


@pytest.mark.parametrize("names", [diffusers.SCRIPT_FLAGS, kohya.SCRIPT_FLAGS], ids=["diffusers", "kohya"])
def test_every_flag_of_their_scripts_is_known(names):
    """The flags of diffusers' DreamBooth scripts (August 2026) and of kohya's train_db, train_network and sdxl_train (February)."""
    assert names <= {*flags(), *foreign_names(), "config_file", "dataset_config"}


def test_a_rank_asks_for_lora_and_says_so():
    command = parse("--pretrained_model_name_or_path x --rank 4 --instance_data_dir photos")
    assert command.config().train.method == "lora" and "an adapter (LoRA)" in command.notices[0]
    assert "--method lora" in parse("--rank 4").notices[0]
    assert parse("--use_dora --rank 4").config().train.method == "dora"
    assert parse("--method full --rank 4").config().train.method == "full", "which the checks then refuse"


def test_a_line_of_kohyas_trainer_is_understood():
    config = parse(
        "--pretrained_model_name_or_path m.safetensors --train_data_dir img --reg_data_dir reg --network_module networks.lora "
        "--network_dim 32 --network_alpha 16 --optimizer_type AdamW8bit --optimizer_args weight_decay=0.1 betas=0.9,0.99 "
        "--unet_lr 1e-4 --max_train_epochs 10 --min_snr_gamma 5 --noise_offset 0.05 --save_precision float --cache_latents "
        "--full_bf16 --sdpa --flip_aug --random_crop --enable_bucket --v2 --v_parameterization --lowram --resolution 768,768 "
        "--log_with all --lr_scheduler cosine_with_restarts --lr_scheduler_num_cycles 3 --max_data_loader_n_workers 2"
    ).config()
    assert (config.data.instance_data_dir, config.prior.class_data_dir) == ("img", "reg")
    assert config.prior.with_prior_preservation, "--reg_data_dir means regularisation there"
    assert (config.train.method, config.lora.rank, config.lora.alpha) == ("lora", 32, 16)
    assert (config.memory.moments, config.train.adam_weight_decay, config.train.adam_beta2) == ("8bit", 0.1, 0.99)
    assert (config.train.learning_rate, config.train.num_train_epochs, config.train.snr_gamma) == (1e-4, 10, 5)
    assert (config.train.offset_noise, config.export.precision, config.memory.weights) == (0.05, "fp32", "16bit_sr")
    assert (config.model.family, config.model.prediction_type, config.data.resolution) == ("sd2", "v_prediction", 768)
    assert config.data.random_flip and config.data.buckets and config.data.crop == "random"
    assert config.run.report_to == ["tensorboard", "wandb"] and config.train.lr_num_cycles == 3


def test_a_refused_flag_that_asks_for_what_happens_anyway_passes():
    """kohya's graphical front end writes such defaults into every line."""
    line = "--loss_type=l2 --huber_schedule=snr --huber_c=0.1 --clip_skip 1 --max_token_length 75 --keep_tokens 0"
    assert parse(line).config().model_dump() == cli.load().model_dump()
    for flag, found in kohya.FLAGS.items():
        if isinstance(found, meanings.Refused):
            assert found.fix == refused(f"--{flag} 7").fix
            assert all(parse(f"--{flag} {word}").values == {} for word in found.harmless)


def test_tags_to_keep_in_place_are_nothing_to_refuse_where_none_is_moved():
    command = parse("--keep_tokens 1")
    assert command.config().model_dump() == cli.load().model_dump() and "keep_tokens" in command.notices[0]
    assert "shuffle" in refused("--keep_tokens 1 --shuffle_caption").what


def test_a_prompt_file_of_kohyas_is_read_without_its_picture_settings(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# previews\na sks dog on a beach --n low quality --w 512 --d 1\n\na dog, sitting\n")
    command = parse(f"--sample_prompts {file}")
    assert command.config().sample.validation_prompt == ["a sks dog on a beach", "a dog, sitting"]
    assert "only the prompts count" in command.notices[0]


def test_an_epoch_of_diffusers_script_shows_every_class_image(photos):
    line = "--pretrained_model_name_or_path x --instance_data_dir p --num_train_epochs 3"
    prior = " --with_prior_preservation --class_prompt 'a dog' --num_class_images 50 --train_batch_size 4"
    command = parse(line + prior)
    assert command.config().train.max_train_steps == 3 * 13 and "39 steps" in " ".join(command.notices)
    assert parse(line + prior + " --gradient_accumulation_steps 2").config().train.max_train_steps == 3 * 7
    assert parse(line).config().train.num_train_epochs == 3, "without class images an epoch is a pass over the photos"
    assert "whole number" in str(refused(line + " --with_prior_preservation --train_batch_size many"))


def test_captions_of_another_extension_are_refused():
    assert parse("--caption_extension .txt").values == {}
    assert "name.txt or name.caption" in refused("--caption_extension .tags").fix


def test_foreign_tables_do_not_overlap_and_speak_of_real_settings():
    tables = [diffusers.FLAGS, kohya.FLAGS]
    assert not tables[0].keys() & tables[1].keys() and not kohya.LATER & (tables[0].keys() | tables[1].keys())
    native = {spelling for spelling in flags() if "." not in spelling}
    silent = {name for table in tables for name, found in table.items() if not isinstance(found, meanings.Sets)}
    assert not silent & native, "a flag that has an effect is not called meaningless"
    assert not TOLERATED - native


# -------------------------------------------------------------------------------------------------- help and explain


def test_help_comes_without_torch_in_under_half_a_second_of_work():
    code = "import sys; from trainer.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, "help imported torch"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert "--learning_rate" in done.stdout and "doctor" in done.stdout


def test_help_shows_every_setting_once_and_fits_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = page()
    for key in knobs():
        name = key.rpartition(".")[2]
        assert text.count(f"--{name} ") + text.count(f"--[no-]{name} ") + text.count(f"--{key} ") >= 1, key
    prose = [line for line in text.splitlines() if not line.lstrip().startswith(("--", "python", "layers"))]
    assert max(map(len, prose)) <= 110


def test_help_says_what_becomes_of_a_run_that_nobody_reads(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = " ".join(page().split())
    assert "Where stdout is closed, or its reader leaves" in said and "goes on to its end" in said
    assert all(f"{code} " in said.partition("exit code is the run's:")[2] for code in (0, 1, 2, 130))
    assert "stdout" not in page("export")


def test_help_of_a_command_shows_only_its_settings():
    text = page("export")
    assert "--formats" in text and "--learning_rate" not in text and "export RUN" in text


@pytest.mark.parametrize(("word", "found"), [
    ("checkpointing", ["memory.checkpointing", "Saves:", "Exact:"]),
    ("--learning-rate", ["train.learning_rate", "--lr"]),
    ("guidance_scale", ["prior.guidance_scale", "sample.guidance_scale"]),
    ("vram_gb", ["preset 8gb: 7.3"]),
    ("stream", ["Streaming", "memory.stream"]),
    ("anchor", ["prior.anchor", "L2-SP", "Costs:"]),
    ("dco", ["prior.by", "2402.12004", "Costs:"]),
    ("others", ["prior.others", "class half", "Costs:"]),
    ("12gb", ["vram_gb = 11.2"]),
    ("use_8bit_adam", ["memory.moments = 8bit"]),
    ("push_to_hub", ["no effect"]),
    ("weighted_captions", ["refused"]),
    ("optimizer_type", ["adamw8bit"]),
    ("rank", ["by default", "--method lora", "at least 1"]),
    ("lora", ["train.method", "[lora] LoRA and DoRA", "lora.rank"]),
    ("dora", ["train.method"]),
    ("prior", ["[prior]", "prior.num_class_images"]),
    ("checkpoint", ["[checkpoint]", "checkpoint.checkpointing_steps"]),
])  # fmt: skip
def test_explain_answers_for_settings_techniques_presets_and_foreign_flags(word, found):
    text = explain.explain(word)
    assert all(part in text for part in found)


def test_explain_suggests_the_nearest_word():
    with pytest.raises(ConfigError, match="checkpointing"):
        explain.explain("checkpointin")


# ------------------------------------------------------------------------------------------------------- exit codes


def test_a_mendable_mistake_ends_in_one_message_and_exit_code_2(capsys):
    assert main(["--learning_rat", "1"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.splitlines() == [
        "error: --learning_rat does not exist",
        "  fix: did you mean --learning_rate?",
    ]


def test_version_help_and_explain_exit_with_0(capsys):
    assert main(["--version"]) == 0 and main(["plan", "--help"]) == 0 and main(["explain", "rank"]) == 0
    assert "--json" in capsys.readouterr().out


def test_ctrl_c_before_the_run_exits_with_130(monkeypatch, capsys):
    from trainer.cli import commands

    def interrupt(command):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.DO, "doctor", interrupt)
    assert main(["doctor"]) == 130


def test_a_bad_line_is_refused_before_torch_is_imported():
    lines = ["--rank 4 --method full", "--instance_data_dir /no/such", "--preset 13gb", "--learning_rate 7"]
    code = f"""import sys; from trainer.__main__ import main
assert [main(line.split()) for line in {lines}] == [2] * {len(lines)} and 'torch' not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("fix:") == len(lines) and "Traceback" not in done.stderr


def test_one_complaint_of_bitsandbytes_is_kept_from_the_screen_and_no_other(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", ImportError("no kernels"))
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def test_a_command_runs_from_a_checkout_by_module_name():
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "explain", "vram_gb"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "preset 12gb" in done.stdout


def test_every_flag_that_a_message_recommends_exists():
    """Messages are promises: a fix that names a flag nobody knows is worse than none."""
    known = {
        *flags(),
        *foreign_names(),
        "help",
        "version",
        "json",
        "config",
        "from",
        "config_file",
        "dataset_config",
    }
    known |= {"force_reinstall", "no_deps"}  # pip's own, in the command that mends an installation
    known |= {"query_compute_apps", "format"}  # nvidia-smi's own
    known |= {"no", "flag", "section.name", *(key.rpartition(".")[2] for key in knobs())}
    unknown = []
    for path in sorted((ROOT / "trainer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            for flag in re.findall(FLAG, text) if path.name != "figures.py" else ():  # CSS variables there
                if not {flag.replace("-", "_"), flag.replace("-", "_").removeprefix("no_")} & known:
                    unknown.append(f"{path.relative_to(ROOT)}: --{flag}")
    assert not unknown


def test_untested_versions_are_said_at_the_start_beside_the_answer(monkeypatch, capsys):
    from trainer.machine import releases

    monkeypatch.setattr(releases, "warning", lambda: ("Not tested with peft 99", "pip install peft"))
    assert main(["plan", "--preset", "12gb", "--json"]) == 0
    shown = capsys.readouterr()
    assert (
        shown.err == "warning: Not tested with peft 99\n  fix: pip install peft\n"
        and "warning: Not tested" not in shown.out
    )
