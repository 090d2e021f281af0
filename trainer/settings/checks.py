"""What can be known to be wrong before anything heavy is loaded: contradictions, settings without effect, paths, disk.

Each finding is a `ConfigError` that says how to mend it. A line written for diffusers' script may carry settings
which that script ignores too; those become notices, so that the line runs unchanged.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path

from trainer.errors import ConfigError
from trainer.files.claim import is_claim
from trainer.settings import keeping
from trainer.settings.config import Config
from trainer.settings.dialects.programs import TOLERATED
from trainer.settings.effect import idle, prior_is_on
from trainer.settings.overlay import nearest, presets
from trainer.settings.subsets import subset

USUAL = {"full": (1e-6, 5e-6), "lora": (1e-4, 5e-4), "dora": (1e-4, 5e-4)}  # rates of the scripts' pages and presets


def check(config: Config, tolerant: bool = False, files: bool = True) -> list[str]:
    """Raise a ConfigError for the first thing that is wrong; the notices that remain are returned.

    tolerant: a line made for diffusers' script. files: look at photos and output folder too (a plan needs none).
    """
    _contradictions(config)
    notices = _without_effect(config, tolerant)
    _numbers(config)
    notices += _rates(config)
    if files:
        _photos(config)
        places(config)
        _output(config)
    return notices


def _contradictions(config: Config) -> None:
    train, data, prior = config.train, config.data, config.prior
    if train.max_train_steps is not None and train.num_train_epochs is not None:
        raise ConfigError("max_train_steps and num_train_epochs contradict each other", "keep one of them")
    named = data.class_name or prior.class_prompt or prior.class_data_dir  # its folders may name the class
    if prior.with_prior_preservation and not on_demo(config) and not named:
        raise ConfigError(
            "prior preservation needs to know what the subject is",
            "add --class_name dog (or --class_prompt 'a photo of a dog')",
        )
    if prior_is_on(config) and prior.prior_loss_weight == 0:
        raise ConfigError(
            "prior_loss_weight = 0 makes class images and then ignores them",
            "use --no-with_prior_preservation, or a weight above 0",
        )
    if train.lr_warmup_steps and train.lr_warmup_share:
        raise ConfigError("lr_warmup_steps and lr_warmup_share both set the warm-up", "leave one of them out")
    if train.lr_scheduler == "constant_with_warmup" and not (train.lr_warmup_steps or train.lr_warmup_share):
        raise ConfigError(
            "constant_with_warmup with lr_warmup_steps = 0 has no warm-up",
            "choose --lr_warmup_steps, or --lr_scheduler constant",
        )
    of_steps(config)
    formats = config.export.formats or []
    lora = [name for name in formats if name.startswith("lora")]
    if lora and train.method == "full":
        raise ConfigError(
            f"export.formats = {lora} needs an adapter", "add --method lora, or --formats diffusers single_file"
        )
    strength(config.export.strength, dora=train.method == "dora")
    keeping.check(config)
    if config.memory.weights != "auto" and train.optimizer != "adamw" and config.memory.weights != "fp32":
        raise ConfigError(
            f"memory.weights = {config.memory.weights} needs the optimizer that understands it",
            "use --optimizer adamw, or --weights fp32",
        )


def of_steps(config: Config) -> None:
    """ConfigError where something comes after the last step; asked again once the photos have said how many there are."""
    train, steps = config.train, config.train.max_train_steps
    if steps is None:
        return
    counted = f"{steps} steps ({config.provenance.get('train.max_train_steps', 'default')})"
    if train.lr_scheduler != "constant" and train.lr_warmup_steps >= steps:
        raise ConfigError(
            f"lr_warmup_steps = {train.lr_warmup_steps} leaves nothing of {counted}", "shorten --lr_warmup_steps"
        )
    after = steps - train.lr_warmup_steps
    if train.lr_scheduler == "cosine_with_restarts" and train.lr_num_cycles > after:
        raise ConfigError(
            f"lr_num_cycles = {train.lr_num_cycles} starts the rate again more often than {counted} allow",
            f"choose at most {after}; 1 to 4 are usual",
        )
    stop = train.text_encoder_stop_step
    if (
        train.train_text_encoder
        and config.chosen("train.text_encoder_stop_step")
        and stop is not None
        and stop >= steps
    ):
        raise ConfigError(
            f"text_encoder_stop_step = {stop} would have no effect: training ends after {counted}",
            f"choose less than {steps}, or leave it out",
        )


def _without_effect(config: Config, tolerant: bool) -> list[str]:
    notices, errors = [], []
    defaults = Config()
    for key, (why, fix) in idle(config).items():
        if not config.chosen(key):
            continue
        origin = config.provenance[key]
        name = key.rpartition(".")[2]
        if config.value(key) == defaults.value(key) or (tolerant and name in TOLERATED):
            notices.append(f"{key} ({origin}) has no effect: {why}")
        else:
            errors.append((f"{key} ({origin}) would have no effect: {why}", fix))
    if errors:
        raise ConfigError(
            "\n       ".join(what for what, _ in errors), "; ".join(dict.fromkeys(fix for _, fix in errors))
        )
    return notices


def _numbers(config: Config) -> None:
    """Numbers the schema allows but nobody means."""
    train = config.train
    limit = {"full": 1e-3, "lora": 1e-1, "dora": 1e-1}[train.method]
    rates = {"learning_rate": train.learning_rate, "text_encoder_lr": train.text_encoder_lr}
    for name, rate in rates.items():
        if rate is not None and rate > limit and train.optimizer != "prodigy":
            least, most = USUAL[train.method]
            raise ConfigError(
                f"train.{name} = {rate:g} would destroy the model ({train.method}: at most {limit:g})",
                f"usual values are {short(least)} to {short(most)}",
            )
    if config.data.resolution and config.data.resolution % 8:
        near = max(round(config.data.resolution / 64) * 64, 64)
        raise ConfigError(
            f"data.resolution = {config.data.resolution} is not a multiple of 8", f"use --resolution {near}"
        )
    if config.train.adam_beta1 > config.train.adam_beta2 and config.chosen("train.adam_beta1"):
        raise ConfigError("adam_beta1 is above adam_beta2", "usual values are 0.9 and 0.999")


def strength(share: float, dora: bool) -> None:
    """ConfigError for what is no share of what was learned, and for a share of what DoRA learned, which has no parts."""
    if not 0 <= share <= 2:
        raise ConfigError(f"a strength of {share:g} is no share of what was learned", "choose from 0 to 2; 1 is all")
    if dora and share != 1:
        raise ConfigError(
            f"export.strength {share:g} means nothing for DoRA: its magnitudes multiply the weights",
            "leave it at 1, or train with --method lora",
        )


def _rates(config: Config) -> list[str]:
    """A rate that is ten times off for the method, as where a line of an adapter is run without its method. It may be meant,
    and a batch of hundreds takes more: so it is said, and not refused. The demo model is small, and has rates of its own."""
    train, (least, most) = config.train, USUAL[config.train.method]
    rate = train.learning_rate
    if rate is None or train.optimizer == "prodigy" or config.model.name == "demo" or least / 10 < rate < most * 10:
        return []
    meant = "for an adapter add --method lora" if train.method == "full" else "to train all weights add --method full"
    what = "full fine-tuning" if train.method == "full" else "an adapter"
    return [
        f"--learning_rate {short(rate)} is far from what {what} usually takes, {short(least)} to {short(most)}; "
        f"{'much may be forgotten' if rate > most else 'little will be learned'} ({meant})"
    ]


def short(rate: float) -> str:
    """A rate as people write it: 1e-4, 2.5e-6."""
    digits, _, power = f"{rate:e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def on_demo(config: Config) -> bool:
    return config.data.instance_data_dir is None


def _photos(config: Config) -> None:
    data = config.data
    if config.model.name is None:  # a plan needs only the family
        raise ConfigError(
            f"which {config.model.family} model?", "add --model with a hub id, a folder or a .safetensors file"
        )
    if data.instance_data_dir is None:
        if config.model.name not in (None, "demo"):
            raise ConfigError(
                f"no photos for {config.model.name}",
                "add --instance_data_dir with a folder of 3 to 6 photos of the subject",
            )
        return
    folder = Path(data.instance_data_dir)
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = nearest(folder.name, siblings, "did you mean {}?") or "check the path after --instance_data_dir"
        raise ConfigError(
            f"there is no photo folder {folder}"
            if not folder.exists()
            else f"{folder} is a file, not a folder of photos",
            near,
        )
    if config.prior.class_data_dir and Path(config.prior.class_data_dir).is_file():
        raise ConfigError(
            f"{config.prior.class_data_dir} is a file, not a folder of class images",
            "name a folder after --class_data_dir; it may be new",
        )


def places(config: Config, written: bool = True) -> None:
    """ConfigError where photos, class images, output and cache are not four different places, none inside another.

    written: False where nothing will be trained: then photos are compared with the class images that are named."""
    data, prior, run = config.data, config.prior, config.run
    folders = [folder for _, folder, _ in map(subset, data.subsets)] or [data.instance_data_dir]
    wanted = [
        *(("the photos", "--instance_data_dir", folder) for folder in folders),
        ("the class images", "--class_data_dir", prior.class_data_dir if prior_is_on(config) or not written else None),
        ("the run's output", "--output_dir", run.output_dir if written else None),
        ("the cache", "--cache_dir", run.cache_dir if written else None),
    ]
    named = [(what, flag, Path(path)) for what, flag, path in wanted if path]
    for (one, _, here), (other, flag, there) in itertools.combinations(named, 2):
        if one != other and (_inside(there, here) or _inside(here, there)):
            how = "are in one place" if _inside(there, here) and _inside(here, there) else "lie inside one another"
            raise ConfigError(
                f"{one} ({here}) and {other} ({there}) {how}: what is written for one would be read as the other",
                f"name another folder with {flag}",
            )


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies below it; links are followed, and names that differ in case alone are one where
    the disk says so."""
    real, root = path.resolve(), folder.resolve()
    places = [real, *real.parents]
    return root in places or (root.exists() and any(place.exists() and place.samefile(root) for place in places))


def _output(config: Config) -> None:
    for flag, path in (("--cache_dir", config.run.cache_dir), ("--logging_dir", config.run.logging_dir)):
        if path is not None:
            writable(Path(path), flag)
    resume = config.checkpoint.resume_from_checkpoint
    if config.run.output_dir is None:
        if resume == "latest":
            raise ConfigError(
                "'latest' of which run?",
                "name its folder with --output_dir, or repeat it with --config RUN/config.toml",
            )
        return writable(Path("runs"))
    folder = Path(config.run.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file", "name a folder that is new or empty")
    taken = folder.is_dir() and not all(map(is_claim, folder.iterdir()))
    if taken and not resume and not config.run.overwrite:
        raise ConfigError(
            f"output_dir {folder} is not empty",
            "name a new folder, go on with its run (--resume_from_checkpoint latest), or add --overwrite",
        )
    writable(folder)


def writable(folder: Path, flag: str = "--output_dir") -> None:
    """ConfigError where `folder` cannot be made or written into; nothing stays behind."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{folder} cannot be made: {place} is a file", f"choose another {flag}")
    try:
        tempfile.TemporaryFile(dir=place).close()  # asking beats guessing: read-only disks, /proc, root
    except OSError as error:
        fix = f"choose another {flag}, or mend the permissions"
        raise ConfigError(f"{folder} cannot be written: {error.strerror} in {place}", fix) from error


def space(config: Config, fp16_gb: float) -> None:
    """A rough look at the disk; the exact sizes are checked again before each file is written. fp16_gb: one export of a
    model of this family; a checkpoint holds 3 to 12 bytes a weight more."""
    fp16 = _weights_gb(Path(config.model.name or "")) / 2 or fp16_gb  # a model on this disk is measured
    export = fp16 * {"fp16": 1, "bf16": 1, "fp32": 2}[config.export.precision]
    full = export * (1 + len(config.export.formats or ["diffusers", "single_file"]))
    need = full if config.train.method == "full" else min(full, 0.1)
    place = Path(config.run.output_dir or "runs").absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free < need:
        raise ConfigError(
            f"the disk under {place} has {_gb(free)} GB free; this run writes at least {_gb(need)} GB",
            "free space, choose another --output_dir, or fewer --formats",
        )


def _gb(number: float) -> str:
    return f"{number:.1f}" if number >= 0.1 else f"{number:.1g}"


def _weights_gb(model: Path) -> float:
    """What the weights of a model on this disk take there; 0 where there is none."""
    files = [model] if model.is_file() else model.glob("*/*.safetensors") if model.name and model.is_dir() else []
    return sum(file.stat().st_size for file in files) / 1e9


def judge(name: str) -> None:
    """ConfigError where the guard's judge is not known, or is neither on this machine nor to be had from the hub."""
    kind, _, where = name.partition(":")
    if kind in ("clip", "dino") and where:
        from trainer.files import hub

        if not Path(where).expanduser().is_dir():
            hub.small(where, hub.JUDGE)
    elif name not in ("auto", "none", "demo", "efficientnet-lite0") and not (Path(name) / "judge.json").is_file():
        raise ConfigError(
            f"no judge is called {name!r}",
            "use --judge demo, clip:<hub id or folder>, dino:<hub id or folder>, efficientnet-lite0 or none",
        )


def card(config: Config, total_bytes: int, name: str) -> None:
    """ConfigError where the budget is larger than the card: a preset for another card was chosen."""
    budget = config.memory.vram_gb
    if budget is None or budget * 2**30 <= total_bytes:
        return
    total = total_bytes / 2**30
    fitting = [preset for preset in presets() if int(preset.removesuffix("gb")) <= total + 0.6]
    fix = f"use --preset {fitting[-1]}" if fitting else f"use --vram_gb {total * 0.85:.1f}"
    origin = config.provenance.get("memory.vram_gb", "default")
    raise ConfigError(
        f"vram_gb = {budget:g} ({origin}) is more than {name} has ({total:.1f} GiB)", f"{fix}, or --preset auto"
    )
