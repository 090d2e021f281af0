"""Public command lines, pasted as they stand with models and photos of this machine: what each is understood as.

They are the lines of diffusers' `examples/dreambooth` pages, of the pages in kohya's `docs/`, and of OneTrainer's and
ai-toolkit's own presets (2026-08), with local paths, small sizes and few steps. A line is carried to where a run would
begin to load weights; one of each program is trained to its end by `test_a_line_of_each_program_is_trained_to_its_end`.
"""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from photos import folder_of
from safetensors.torch import load_file

from trainer.__main__ import main
from trainer.cli import parse as cli
from trainer.errors import ConfigError
from trainer.models import SD1, SDXL
from trainer.out import export
from trainer.run.prepare import prepare

PHOTOS = "--instance_data_dir=dog --instance_prompt='a photo of sks dog' --resolution=64"
FEW = "--train_batch_size=1 --gradient_accumulation_steps=1 --lr_scheduler=constant --lr_warmup_steps=0 --max_train_steps=2"
DREAMBOOTH = (
    f"accelerate launch train_dreambooth.py --pretrained_model_name_or_path=sd1 {PHOTOS} {FEW} --output_dir=out "
    "--learning_rate=5e-6"
)
PRIOR = (
    "--class_data_dir=class --with_prior_preservation --prior_loss_weight=1.0 --class_prompt='a photo of dog' "
    "--num_class_images=2"
)
NETWORK = (
    "accelerate launch --num_cpu_threads_per_process 1 train_network.py --pretrained_model_name_or_path=sd1.safetensors "
    "--dataset_config=dataset.toml --output_dir=out --output_name=my_lora --save_model_as=safetensors "
    "--network_module=networks.lora --network_dim=16 --network_alpha=1 --learning_rate=1e-4 --optimizer_type=AdamW8bit "
    "--lr_scheduler=constant --sdpa --max_train_epochs=1 --save_every_n_epochs=1 --mixed_precision=fp16 "
    "--gradient_checkpointing"
)
DATASET = """
[general]
enable_bucket = true
[[datasets]]
resolution = 64
batch_size = 2
[[datasets.subsets]]
image_dir = "dog"
class_tokens = "sks dog"
num_repeats = 2
"""
TOOLKIT = """
job: extension
config:
  name: mine
  process:
    - type: sd_trainer
      training_folder: out
      device: cuda:0
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - {folder_path: captioned, caption_ext: txt, caption_dropout_rate: 0.05, cache_latents_to_disk: true, resolution: 64}
      train: {batch_size: 1, steps: 2, gradient_accumulation_steps: 1, train_unet: true, train_text_encoder: false,
              gradient_checkpointing: true, noise_scheduler: ddpm, optimizer: adamw8bit, lr: 1e-4, dtype: bf16,
              disable_sampling: true}
      model: {name_or_path: sdxl, is_xl: true}
meta: {name: mine, version: "1.0"}
"""


@dataclass(frozen=True)
class Line:
    """expected: settings by dotted key; said: words among the notices; refused: words of the error and of its fix."""

    program: str
    name: str
    line: str
    expected: dict = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: tuple[str, str] = ("", "")


FULL = {"train.method": "full", "train.train_text_encoder": False, "prior.with_prior_preservation": False}
LORA = {"train.method": "lora", "lora.rank": 4}
LINES = [
    Line("diffusers", "train_dreambooth.py", f"{DREAMBOOTH} --push_to_hub",
         FULL | {"train.learning_rate": 5e-6, "run.layout": "diffusers", "memory.moments": "auto"},
         ("--push_to_hub has no effect", "--crop random")),
    Line("diffusers", "train_dreambooth.py, class images",
         f"{DREAMBOOTH} {PRIOR} --gradient_checkpointing --use_8bit_adam --push_to_hub",
         {"prior.with_prior_preservation": True, "prior.num_class_images": 2, "memory.moments": "8bit",
          "memory.checkpointing": "blocks", "prior.class_data_dir": "class"}),
    Line("diffusers", "train_dreambooth.py, text encoder", f"{DREAMBOOTH} {PRIOR} --train_text_encoder --use_8bit_adam",
         {"train.train_text_encoder": True, "train.method": "full"}),
    Line("diffusers", "train_dreambooth.py, 12 GB",
         f"{DREAMBOOTH} {PRIOR} --use_8bit_adam --enable_xformers_memory_efficient_attention --set_grads_to_none",
         {"memory.moments": "8bit"}, ("--set_grads_to_none has no effect",)),
    Line("diffusers", "train_dreambooth_lora.py",
         f"accelerate launch train_dreambooth_lora.py --pretrained_model_name_or_path=sd1 {PHOTOS} {FEW} --output_dir=out "
         "--checkpointing_steps=100 --learning_rate=1e-4 --validation_prompt='A photo of sks dog in a bucket' "
         "--validation_epochs=50 --seed=0",
         LORA | {"lora.alpha": None, "lora.init": "gaussian", "checkpoint.checkpointing_steps": 100, "train.seed": 0,
                 "sample.validation_prompt": ["A photo of sks dog in a bucket"]}, ("rank 4",)),
    Line("diffusers", "train_dreambooth_lora_sdxl.py",
         f"accelerate launch train_dreambooth_lora_sdxl.py --pretrained_model_name_or_path=sdxl {PHOTOS} {FEW} "
         "--pretrained_vae_model_name_or_path=sdxl/vae --output_dir=out --mixed_precision=fp16 --learning_rate=1e-4 "
         "--seed=0 --train_text_encoder",
         LORA | {"train.text_encoder_lr": 5e-6, "train.mixed_precision": "fp16", "model.vae": "sdxl/vae"},
         ("5e-6 for the text encoders",)),
    Line("diffusers", "train_dreambooth_lora_sdxl_advanced.py, new tokens",
         f"accelerate launch train_dreambooth_lora_sdxl_advanced.py --pretrained_model_name_or_path=sdxl {PHOTOS} "
         "--train_text_encoder_ti --train_text_encoder_ti_frac=0.5", refused=("textual inversion", "--train_text_encoder")),
    Line("kohya's sd-scripts", "train_network.py", NETWORK,
         LORA | {"lora.rank": 16, "lora.alpha": 1, "lora.init": "kaiming", "train.train_text_encoder": True,
                 "train.train_batch_size": 2, "data.subsets": ["2 x dog = sks dog"], "data.buckets": True,
                 "train.num_train_epochs": 1, "memory.moments": "8bit"},
         ("the text encoder is trained, too", "--save_every_n_epochs has no effect")),
    Line("kohya's sd-scripts", "sdxl_train_network.py",
         NETWORK.replace("train_network", "sdxl_train_network").replace("sd1.", "sdxl.")
         + " --unet_lr=1e-4 --text_encoder_lr1=1e-5 --text_encoder_lr2=2e-5 --cache_latents --no_half_vae",
         LORA | {"lora.rank": 16, "train.text_encoder_lr": 1e-5, "train.text_encoder_2_lr": 2e-5},
         ("--no_half_vae has no effect",)),
    Line("kohya's sd-scripts", "sdxl_train_network.py, denoiser alone",
         NETWORK.replace("train_network", "sdxl_train_network").replace("sd1.", "sdxl.")
         + " --network_train_unet_only --cache_text_encoder_outputs --vae=sdxl.safetensors",
         LORA | {"lora.rank": 16, "train.train_text_encoder": False, "model.vae": "sdxl.safetensors"}),
    Line("kohya's sd-scripts", "train_db.py",
         "accelerate launch --num_cpu_threads_per_process 1 train_db.py --pretrained_model_name_or_path=sd1.safetensors "
         "--dataset_config=dataset.toml --output_dir=out --output_name=x --save_model_as=safetensors "
         "--prior_loss_weight=1.0 --max_train_steps=2 --learning_rate=1e-6 --optimizer_type=AdamW8bit --xformers "
         "--mixed_precision=fp16 --cache_latents --gradient_checkpointing",
         {"train.method": "full", "train.train_text_encoder": True, "train.max_train_steps": 2},
         ("the text encoder is trained, too",)),
    Line("kohya's sd-scripts", "train_db.py, numbered folders and class images",
         "accelerate launch train_db.py --pretrained_model_name_or_path=sd1.safetensors --train_data_dir=img "
         "--reg_data_dir=reg --output_dir=out --prior_loss_weight=1.0 --resolution=64,64 --train_batch_size=1 "
         "--learning_rate=1e-6 --max_train_steps=2 --use_8bit_adam --save_precision=fp16 --clip_skip=2 --seed=42",
         {"prior.with_prior_preservation": True, "prior.class_prompt": "dog", "model.clip_skip": 2, "train.seed": 42},
         ("the class images' prompt is 'dog'",)),
    Line("kohya's sd-scripts", "sdxl_train.py",
         "accelerate launch --mixed_precision bf16 sdxl_train.py --pretrained_model_name_or_path sdxl.safetensors "
         "--dataset_config dataset.toml --output_dir out --train_text_encoder --learning_rate 1e-5 "
         "--learning_rate_te1 5e-6 --learning_rate_te2 2e-6 --max_train_steps 2 --optimizer_type Adafactor "
         "--optimizer_args scale_parameter=False relative_step=False warmup_init=False",
         {"train.method": "full", "train.text_encoder_lr": 5e-6, "train.text_encoder_2_lr": 2e-6,
          "train.mixed_precision": "bf16", "train.optimizer": "adafactor"}),
    Line("kohya's sd-scripts", "train_network.py, other algorithms",
         NETWORK.replace("networks.lora", "lycoris.kohya"), refused=("lycoris.kohya", "--method lora")),
    Line("OneTrainer", "LoRA of SD 1.5", "python scripts/train.py --config-path 'presets/#sd 1.5 LoRA.json'",
         LORA | {"lora.rank": 16, "lora.alpha": 1, "export.formats": ["lora_kohya"], "model.name": "sd1"}),
    Line("OneTrainer", "fine-tuning of SD 1.5", "python scripts/train.py --config-path 'presets/#sd 1.5.json'",
         {"train.method": "full", "train.train_text_encoder": True, "export.formats": ["single_file"]}),
    Line("OneTrainer", "LoRA of SDXL", "python scripts/train.py --config-path 'presets/#sdxl 1.0 LoRA.json'",
         LORA | {"lora.rank": 16, "model.family": "sdxl"}),
    Line("OneTrainer", "fine-tuning of SDXL", "python scripts/train.py --config-path 'presets/#sdxl 1.0.json'",
         {"train.method": "full", "model.family": "sdxl"}),
    Line("OneTrainer", "LoRA of SD 1.5, by run-cmd.sh",
         "OT_PREFER_VENV=true ./run-cmd.sh train --config-path='presets/#sd 1.5 LoRA.json' --secrets-path=secrets.json",
         LORA | {"lora.rank": 16, "model.name": "sd1"}, ("--secrets_path has no effect",)),
    Line("OneTrainer", "values beside the file",
         "python scripts/train.py --config-path 'presets/#sd 1.5 LoRA.json' --config-value epochs=3",
         refused=("--config_value", "write it into the file")),
    Line("OneTrainer", "its window", "python scripts/train_ui.py", refused=("opens a window", "--config FILE.json")),
    Line("OneTrainer", "masked SD 1.5", "python scripts/train.py --config-path 'presets/#sd 1.5 masked.json'",
         refused=("max_noising_strength", "set it to 1")),
    Line("ai-toolkit", "LoRA of SDXL", "python run.py job.yaml",
         LORA | {"lora.rank": 16, "lora.alpha": 16, "train.caption_dropout": 0.05, "run.output_dir": "out/mine",
                 "sample.num_validation_images": 0}),
    Line("ai-toolkit", "Flux", "python run.py flux.yaml", refused=("is_flux", "--model FOLDER --method lora")),
    Line("SimpleTuner", "any", "simpletuner train", refused=("SimpleTuner", "--method lora")),
    Line("SimpleTuner", "any, by its script", "accelerate launch simpletuner/train.py --model_family=sdxl --model_type=lora",
         refused=("SimpleTuner", "--method lora")),
    Line("SimpleTuner", "its file", "--config simple.json", refused=("file of SimpleTuner", "--method lora")),
    Line("any", "a shell script", "bash ./train.sh", refused=("train.sh", "paste the line")),
    Line("OneTrainer", "without a file", "python scripts/train.py", refused=("names no file", "--config-path FILE.json")),
    Line("diffusers", "scripts of other models", "accelerate launch train_dreambooth_lora_flux.py --rank=4",
         refused=("train_dreambooth_lora_flux.py", "train_dreambooth_lora_sdxl.py")),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models, photos and files under the names that the lines say."""
    folder = tmp_path_factory.mktemp("pasted")
    for name, family in (("sd1", SD1), ("sdxl", SDXL)):
        list(export.write(family.tiny(), None, folder / "made", ["diffusers", "single_file"], "fp32", replace=True))
        (folder / "made" / "diffusers").rename(folder / name)
        (folder / "made" / "model.safetensors").rename(folder / f"{name}.safetensors")
    for photos in ("dog", "captioned", "class", "img/10_sks dog", "reg/1_dog"):
        folder_of(folder / photos, 3)
    for photo in (folder / "captioned").glob("*.png"):
        photo.with_suffix(".txt").write_text("sks dog on grass")
    (folder / "dataset.toml").write_text(DATASET)
    (folder / "job.yaml").write_text(TOOLKIT)
    (folder / "flux.yaml").write_text(TOOLKIT.replace("is_xl", "is_flux"))
    (folder / "simple.json").write_text('{"--model_family": "sdxl", "--model_type": "lora"}')
    (folder / "presets").mkdir()
    for public in json.loads((Path(__file__).parent / "public_files.json").read_text(encoding="utf-8")):
        name = public["file"].rpartition("/")[2]
        if public["of"] == "OneTrainer":
            (folder / "presets" / name).write_text(json.dumps(public["holds"] | mine(name)))
    return folder


def mine(name):
    """What whoever takes a preset fills in."""
    return {
        "base_model_name": "sdxl" if "sdxl" in name else "sd1",
        "output_model_destination": "out/mine.safetensors",
        "resolution": "64",
        "epochs": 1,
        "concepts": [{"path": "captioned", "text": {"prompt_source": "sample"}}],
    }


@pytest.mark.parametrize("row", LINES, ids=lambda row: f"{row.program}: {row.name}")
def test_a_public_line_means_here_what_it_says_or_is_refused_with_the_way_out(row, place, monkeypatch, record_property):
    what, fix = row.refused
    record_property("shows", f"bring|{row.program}|{row.name}|{'refused' if what else 'works'}")
    monkeypatch.chdir(place)
    if what:
        with pytest.raises(ConfigError) as error:
            cli.parse(shlex.split(row.line)).config()
        assert what in error.value.what and fix in error.value.fix
        return
    command = cli.parse(shlex.split(row.line))
    config = command.config()
    for key, value in row.expected.items():
        found = config.value(key)
        assert found == value, (key, found)
    for words in row.said:
        assert any(words in notice for notice in command.notices), words
    run = prepare(config)
    assert len(run.photos.photos) + (run.spared is not None) >= 2


TRAINED = {
    "diffusers": ("train_dreambooth_lora.py", "out/pytorch_lora_weights.safetensors"),
    "kohya's sd-scripts": ("train_network.py", "out/my_lora.safetensors"),
    "OneTrainer": ("LoRA of SD 1.5", "out/mine/model/lora_kohya.safetensors"),
    "ai-toolkit": ("LoRA of SDXL", "out/mine/model/pytorch_lora_weights.safetensors"),
}


@pytest.mark.parametrize("program", TRAINED)
def test_a_line_of_each_program_is_trained_to_its_end(program, place, tmp_path, monkeypatch, record_property):
    """What comes out lies where the program's own line says, and diffusers draws from it."""
    name, left = TRAINED[program]
    record_property("shows", f"bring|{program}|{name}, trained to the end|works")
    row = next(row for row in LINES if (row.program, row.name) == (program, name))
    for thing in place.iterdir():
        if thing.name != "out":
            (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    quick = "--no-watch --dashboard off --num_validation_images 1 --sample.steps 1"
    assert main(shlex.split(f"{row.line} {quick}")) == 0
    assert load_file(left)
    model = "sdxl" if "SDXL" in name else "sd1"
    pipeline = DiffusionPipeline.from_pretrained(model)
    pipeline.load_lora_weights(str(Path(left).parent), weight_name=Path(left).name)
    assert pipeline.get_active_adapters()
