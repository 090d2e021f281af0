"""Configuration files of other trainers: every key lands as a value, as meaning nothing here and why, or as refused with the fix."""

import json
import shlex
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.cli import parse as cli
from trainer.cli.foreign_files import open_file
from trainer.errors import ConfigError
from trainer.settings.checks import check
from trainer.settings.dialects.keyed import leaves

KOHYA = """
[model_arguments]
pretrained_model_name_or_path = "base.safetensors"
v2 = false
[additional_network_arguments]
network_module = "networks.lora"
network_dim = 16
network_alpha = 8
unet_lr = 1e-4
text_encoder_lr = [5e-5]
[training_arguments]
output_dir = "out"
max_train_epochs = 10
max_train_steps = 1000
train_batch_size = 2
lr_scheduler = "cosine"
lr_warmup_steps = 0.1
save_every_n_epochs = 1
mixed_precision = "fp16"
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
"""
DATASET = """
[general]
caption_extension = ".txt"
enable_bucket = true
[[datasets]]
resolution = [512, 512]
batch_size = 4
  [[datasets.subsets]]
  image_dir = "{photos}/a"
  class_tokens = "sks dog"
  num_repeats = 10
  [[datasets.subsets]]
  image_dir = "{photos}/b"
  [[datasets.subsets]]
  is_reg = true
  image_dir = "{photos}/reg"
  class_tokens = "dog"
"""
ONETRAINER = {
    "__version": 10, "training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "base_model_name": "org/model",
    "output_model_destination": "models/mine.safetensors", "output_model_format": "KOHYA_LORA", "batch_size": 2, "epochs": 20,
    "learning_rate": 0.0003, "lora_rank": 32, "lora_alpha": 1.0, "layer_filter_preset": "attn-mlp", "resolution": "512",
    "unet": {"weight_dtype": "FLOAT_16"}, "text_encoder": {"train": False, "weight_dtype": "FLOAT_16"},
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "beta1": 0.9}, "loss_weight_fn": "MIN_SNR_GAMMA",
}  # fmt: skip
AITOOLKIT = """
job: extension
config:
  name: mine
  process:
    - type: sd_trainer
      training_folder: out
      trigger_word: sks
      network: {type: lora, linear: 16, linear_alpha: 16}
      save: {dtype: float16, save_every: 250, max_step_saves_to_keep: 4}
      datasets:
        - {folder_path: PHOTOS, caption_ext: txt, caption_dropout_rate: 0.05, resolution: 512, num_repeats: 3}
      train: {batch_size: 1, steps: 2000, lr: 1e-4, optimizer: adamw8bit, train_unet: true, noise_scheduler: ddpm, dtype: bf16}
      model: {name_or_path: org/model, is_xl: true}
      sample: {sampler: ddpm, sample_every: 250, prompts: ["[trigger] in a garden"], guidance_scale: 7, sample_steps: 20}
"""


def config(file, *words):
    return cli.parse(["--config", str(file), *words]).config()


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path):
    for name in ("a", "b", "reg"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    return tmp_path / "photos"


def test_the_nearest_value_of_a_data_set_file_holds_and_the_others_are_named(tmp_path, photos):
    """As sd-scripts looks a value up: subset, data set, [general]."""
    text = DATASET.format(photos=photos).replace(
        "[general]", "[general]\nresolution = 256\nbatch_size = 1\nflip_aug = false", 1
    )
    text = text.replace("num_repeats = 10", "num_repeats = 10\n  flip_aug = true")
    file = write(tmp_path / "any.toml", text)
    found = config(file)
    assert (found.data.resolution, found.train.train_batch_size) == (512, 4)
    assert found.data.random_flip
    told = {row.key: row for row in open_file(file, "config").rows}
    assert "[datasets] holds" in told["general.resolution"].text and "[subsets] holds" in told["general.flip_aug"].text


def test_kohyas_file_of_arguments_means_what_its_flags_mean(tmp_path):
    file = write(tmp_path / "any.toml", KOHYA)
    found = config(file)
    assert found.train.lr_warmup_share == 0.1
    assert (found.model.name, found.train.method, found.lora.rank, found.lora.alpha) == (
        "base.safetensors",
        "lora",
        16,
        8,
    )
    assert (found.train.learning_rate, found.train.text_encoder_lr, found.lora.init) == (1e-4, 5e-5, "kaiming")
    assert found.train.num_train_epochs == 10 and found.train.max_train_steps is None
    assert (found.train.adam_weight_decay, found.train.adam_beta2, found.memory.moments) == (0.1, 0.99, "8bit")
    assert found.train.train_text_encoder and found.provenance["train.train_batch_size"] == f"file {file}"
    assert config(file, "--train_batch_size", "8").train.train_batch_size == 8, "the line counts more than its file"
    line = cli.parse(shlex.split(f"accelerate launch train_network.py --config_file {file}"))
    assert line.config().lora.rank == 16 and line.program.script == "train_network.py"


def test_a_flag_beside_a_file_does_not_make_it_another_programs(tmp_path, photos):
    """Not the data set's nor the model's flag: both would be taken for another script's, with its defaults."""
    file = write(tmp_path / "args.toml", 'network_module = "networks.lora"\nmax_train_steps = 4\n')
    data = write(
        tmp_path / "data.toml",
        f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{photos / "a"}"\nclass_tokens = "sks dog"\n',
    )
    for more in (["--dataset_config", str(data)], ["--pretrained_model_name_or_path", "m"]):
        found = config(file, *more)
        assert (found.train.method, found.lora.rank, found.lora.alpha, found.run.layout) == ("lora", 4, 1, "own")
    named = cli.parse(["sdxl_train_network.py", "--config_file", str(file), "--dataset_config", str(data)])
    assert named.program is not None and named.program.script == "sdxl_train_network.py"
    made = write(tmp_path / "config.json", ONETRAINER)
    beside = cli.parse(["--config", str(made), "--pretrained_model_name_or_path", "m"])
    assert beside.program is None and not any("as in" in notice for notice in beside.notices)


def test_a_data_set_of_kohyas_brings_folders_repeats_prompts_and_class_images(tmp_path, photos):
    file = write(tmp_path / "dataset.toml", DATASET.format(photos=photos))
    line = f"train_network.py --pretrained_model_name_or_path m --network_module networks.lora --dataset_config {file}"
    found = cli.parse(shlex.split(line)).config()
    assert found.data.subsets == [f"10 x {photos}/a = sks dog", f"1 x {photos}/b"]
    assert found.data.instance_data_dir == f"{photos}/a"
    assert (found.prior.with_prior_preservation, found.prior.class_data_dir) == (True, f"{photos}/reg")
    assert (found.prior.class_prompt, found.data.resolution, found.data.buckets) == ("dog", 512, True)
    assert found.train.train_batch_size == 4
    whole = write(tmp_path / "args.toml", KOHYA.replace("lr_warmup_steps = 0.1", f'dataset_config = "{file.name}"'))
    assert config(whole).data.subsets == found.data.subsets, "a file may name the other"


def test_onetrainers_file_and_the_concepts_beside_it(tmp_path, photos):
    concepts = [
        {"path": str(photos / "a"), "balancing": 10.0, "text": {"prompt_source": "sample"}},
        {"path": str(photos / "b"), "enabled": False},
        {"path": str(photos / "reg"), "type": "PRIOR_PREDICTION"},
    ]
    write(tmp_path / "concepts.json", concepts)
    told = ONETRAINER | {"concept_file_name": "training_concepts/concepts.json"}
    found = config(write(tmp_path / "config.json", told))
    assert (found.train.method, found.model.family, found.model.name) == ("lora", "sd1", "org/model")
    assert (found.lora.rank, found.lora.alpha, found.lora.init, len(found.lora.targets)) == (32, 1, "kaiming", 8)
    assert (found.train.train_text_encoder, found.data.buckets, found.train.snr_gamma) == (False, True, 5)
    assert found.data.subsets == [f"10 x {photos / 'a'}"] and found.prior.by == "prediction"
    assert found.run.output_dir == "models/mine" and found.export.formats == ["lora_kohya"]
    check(config(tmp_path / "config.json", "--class_prompt", "a dog"), tolerant=True, files=False)
    line = cli.parse(shlex.split(f"python scripts/train.py --config-path {tmp_path / 'config.json'}"))
    assert line.config().lora.rank == 32, "its command line only names the file"


def test_aitoolkits_file(tmp_path, photos):
    file = write(tmp_path / "job.yaml", AITOOLKIT.replace("PHOTOS", str(photos / "a")))
    found = config(file)
    assert (found.train.method, found.model.family, found.lora.rank, found.lora.alpha) == ("lora", "sdxl", 16, 16)
    assert (found.train.learning_rate, found.train.max_train_steps, found.memory.moments) == (1e-4, 2000, "8bit")
    assert found.data.subsets == [f"3 x {photos / 'a'} = sks"] and found.train.caption_dropout == 0.05
    assert found.sample.validation_prompt == ["sks in a garden"] and found.run.output_dir == "out/mine"
    check(found, tolerant=True, files=False)
    assert cli.parse(["python", "run.py", str(file)]).config().lora.rank == 16


def test_a_key_of_aitoolkits_file_that_sets_something_is_not_said_to_mean_nothing(tmp_path, photos):
    folders = f"{{folder_path: {photos / 'reg'}, is_reg: true}}", f"{{folder_path: {photos / 'b'}, trigger_word: ohwx}}"
    more = "".join(f"        - {folder}\n" for folder in folders)
    text = AITOOLKIT.replace("PHOTOS", str(photos / "a")).replace("      train:", f"{more}      train:")
    told = open_file(write(tmp_path / "job.yaml", text), "from")
    rows = {row.key: row for row in told.rows}
    assert rows["training_folder"].text == "run.output_dir = out/mine"
    assert rows["datasets[0]"].text == f"data.subsets = 3 x {photos / 'a'} = sks"
    assert rows["datasets[1].is_reg"].text == f"prior.class_data_dir = {photos / 'reg'}"
    assert rows["datasets[2]"].text == f"data.subsets = 1 x {photos / 'b'} = ohwx", (
        "a folder's own word goes before the job's"
    )
    assert rows["datasets[0].caption_ext"].outcome == "note" and "datasets[0].folder_path" not in rows


def test_what_would_change_what_is_learned_is_refused_all_at_once_with_every_fix(tmp_path):
    told = ONETRAINER | {"mae_strength": 0.5, "max_noising_strength": 0.8, "text_encoder": {"train": True}}
    with pytest.raises(ConfigError) as caught:
        config(write(tmp_path / "config.json", told))
    assert "mae_strength" in caught.value.what and "max_noising_strength" in caught.value.what
    assert "explain --from" in caught.value.fix
    flux = AITOOLKIT.replace("is_xl: true", "is_flux: true")
    with pytest.raises(ConfigError, match="is_flux"):
        config(write(tmp_path / "flux.yaml", flux))


def test_a_key_that_nobody_knows_is_refused_and_an_empty_one_is_not_set(tmp_path):
    told = open_file(
        write(tmp_path / "config.json", ONETRAINER | {"brand_new_key": 3, "vae": {"model_name": ""}}), "from"
    )
    rows = {row.key: row for row in told.rows}
    assert rows["brand_new_key"].outcome == "refused" and rows["vae.model_name"].text == "not set"


def test_explain_shows_every_key_with_what_becomes_of_it_and_trains_nothing(tmp_path, capsys):
    file = write(
        tmp_path / "args.toml", KOHYA.replace('lr_scheduler = "cosine"', 'lr_scheduler = "cosine"\nloss_type = "huber"')
    )
    assert main(["explain", "--from", str(file)]) == 0
    out = capsys.readouterr().out
    assert "network_dim" in out and "lora.rank = 16" in out
    assert "save_every_n_epochs" in out and "counted in steps" in out
    assert "loss_type" in out and "the squared error" in out and "fix:" in out
    assert "--max_train_epochs decides" in out and "together" in out


def test_the_command_that_explains_a_file_can_be_pasted_though_its_path_has_spaces(tmp_path, capsys):
    (tmp_path / "#sd 1.5").mkdir()
    file = write(tmp_path / "#sd 1.5" / "my LoRA.json", ONETRAINER | {"mae_strength": 0.5})
    with pytest.raises(ConfigError) as caught:
        config(file)
    words = shlex.split(caught.value.fix.partition("python -m trainer ")[2])
    assert main(words) == 0 and "mae_strength" in capsys.readouterr().out
    (told,) = cli.parse(["--config", str(write(file, ONETRAINER))]).notices[:1]
    assert shlex.quote(str(file)) in told


@pytest.mark.parametrize(("name", "text", "words"), [
    ("a.json", "{", "not valid JSON"), ("a.json", '{"x": 1}', "unknown kind"), ("a.yaml", "a: [", "not valid YAML"),
    ("a.yaml", "a: 1", "unknown kind"), ("a.toml", "a = ", "not valid TOML"),
])  # fmt: skip
def test_a_file_of_no_known_kind_is_named(tmp_path, name, text, words):
    with pytest.raises(ConfigError, match=words):
        config(write(tmp_path / name, text))


PUBLIC = json.loads((Path(__file__).parent / "public_files.json").read_text(encoding="utf-8"))


def as_toml(tables):
    def section(name, values):
        return [name, *(f"{key} = {json.dumps(value)}" for key, value in values.items() if key != "subsets")]

    lines = section("[general]", tables.get("general", {}))
    for dataset in tables["datasets"]:
        lines += section("[[datasets]]", dataset)
        for subset in dataset.get("subsets", []):
            lines += section("[[datasets.subsets]]", subset)
    return "\n".join(lines)


@pytest.mark.parametrize("public", PUBLIC, ids=[public["file"].rpartition("/")[2] for public in PUBLIC])
def test_public_example_files_are_understood_to_the_last_key(tmp_path, public, record_property):
    """The keys and values of the projects' own examples (August 2026): what cannot be honoured is refused, nothing else."""
    toml = public["of"].startswith("a data set")
    outcome = "refused" if public["refused"] else "works"
    record_property("shows", f"bring|{public['of'].removeprefix('a data set of ')}|public example files|{outcome}")
    path = tmp_path / ("given.toml" if toml else "given.json")
    path.write_text(as_toml(public["holds"]) if toml else json.dumps(public["holds"]), encoding="utf-8")
    found = open_file(path, "config")
    assert found.whose == public["of"]
    assert [row.key for row in found.rows if row.outcome == "refused"] == public["refused"]
    assert all(row.fix for row in found.rows if row.outcome == "refused")
    if not toml:
        told = {row.key.rpartition(".")[2].partition("[")[0] for row in found.rows}
        process = public["holds"].get("config", {}).get("process", [public["holds"]])[0]
        assert {str(key).rpartition(".")[2] for key, _ in leaves(process) if key != "type"} - {"type"} <= told | {
            "datasets"
        }


def test_a_file_of_ours_stays_ours(tmp_path):
    file = write(tmp_path / "mine.toml", "[train]\nlearning_rate = 1e-6\n")
    assert config(file).train.learning_rate == 1e-6 and open_file(file, "config") is None
    with pytest.raises(ConfigError, match="none of kohya's keys"):
        cli.parse(["--config_file", str(file)])
