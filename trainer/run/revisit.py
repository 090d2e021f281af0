"""Going back to a run: draw more pictures of what it learned, or write it in another format or precision.

Both start from a checkpoint, which holds what training itself goes on from, and rebuild the engine that wrote it; a model that is no
run (a hub id, a folder, a file) is drawn from as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trainer.data.texts import encode_prompts, token_ids
from trainer.draw.painter import Painter
from trainer.draw.preview import preview
from trainer.draw.sampler import Look
from trainer.draw.sheet import contact_sheet
from trainer.errors import ConfigError
from trainer.events import Event, Finished, Notice, Stage
from trainer.guard import meters, proposal
from trainer.guard.meters import Pictures
from trainer.machine import convolutions
from trainer.models import Parts, Source, adapters, describe, load_for
from trainer.out import checkpoint, inversion
from trainer.out.export import write
from trainer.out.metadata import metadata, photos_of
from trainer.out.strength import Between
from trainer.plan.here.learned import convolved
from trainer.policy import Drawing, Policy
from trainer.run import settle
from trainer.run.assemble import make_engine
from trainer.run.prepare import choose_device
from trainer.settings import checks
from trainer.settings.config import Config, Export
from trainer.settings.overlay import load as settings
from trainer.step.engine import Engine


def sample_run(
    run: Path, prompts: Sequence[str], seeds: Sequence[int], output: Path | None, config: Config
) -> Iterator[Event]:
    """Draw every prompt with every seed, from the newest checkpoint of `run`, from one checkpoint, or from a model."""
    begun = time.perf_counter()
    shares = config.sample.strengths or [config.export.strength]
    for share in shares:
        checks.strength(share, dora=config.train.method == "dora")
    _, device = choose_device(config)
    point = newest(run)
    if point is None and (run / "config.toml").is_file():
        raise no_checkpoint(run)
    if point is None and shares != [1]:
        raise ConfigError(
            f"{run} is a model and no run: nothing tells what it learned from what it was.",
            "Name the run folder, or leave the strength out.",
        )
    if point is None:
        parts, engine, drawing = load_for(config.model), None, Drawing(batch=1)
    else:
        parts, engine, drawing = restore(point, config, device)
    if config.data.resolution is None:
        config.settle("data.resolution", parts.family.resolution, f"{parts.family.name} default")
    step = checkpoint.step_of(point) if point else 0
    drawing = replace(  # what was asked for here counts more than what the run's plan chose
        drawing, batch=config.sample.batch_size or drawing.batch, tile=config.memory.vae_tile or drawing.tile
    )
    painter = Painter(parts, Look.of(config), drawing, device, {}, engine)
    if len(shares) > 1:
        settle.words(config)  # which a run's own settings leave open
    judged = meters.prompts(config) if len(shares) > 1 else []
    wanted = [*dict.fromkeys([*prompts, *judged]), config.sample.negative_prompt]
    if engine is not None and config.train.train_text_encoder:
        painter = replace(painter, texts=token_ids(parts, wanted))
    else:
        painter = replace(painter, texts=(yield from encode_prompts(parts, wanted, device)))
    folder = output or settle.unused(
        (run if point is None and run.is_dir() else (point.parent if point else Path.cwd())) / "drawn"
    )
    rows = [(prompt, seed) for prompt in prompts for seed in seeds]
    if point is None:
        yield from preview(painter, rows, folder, step)
    else:
        between = Between(parts, config.model)
        yield from _at_shares(painter, rows, folder, point, shares, between)
        photos = photos_of(config) if judged else None
        pictures = Pictures.of(config, painter, photos) if photos is not None else None
        if pictures is not None:
            yield proposal.proposed(pictures, config.guard, lambda share: _put(painter, point, share, between), shares)
    yield Finished("done", step, time.perf_counter() - begun, str(run), f"pictures    {folder}")


def _at_shares(
    painter: Painter, rows: list[tuple[str, int]], folder: Path, point: Path, shares: Sequence[float], between: Between
) -> Stage[None]:
    """`rows` at each share of what `point` learned, which lies in the engine; of several one line of a contact sheet each."""
    pictures, words, step = [], [], checkpoint.step_of(point)
    for share in shares:
        _put(painter, point, share, between)
        place = folder / f"strength-{share:g}" if len(shares) > 1 else folder
        pictures += yield from preview(painter, rows, place, step)
        words += [f"strength {share:g}\n{prompt}  ({seed})" for prompt, seed in rows]
    if len(shares) > 1:
        sheet = folder / f"strengths-{step:06d}.png"
        contact_sheet(pictures, words, sheet, columns=len(rows), title=f"step {step}, so much of what was learned")
        yield Notice(f"All strengths side by side: {sheet}")


def _put(painter: Painter, point: Path, share: float, between: Between) -> None:
    """The engine's weights are those of `point` at `share`."""
    assert painter.engine is not None, "a run's weights"
    _fill(painter.engine, checkpoint.load(point))
    between.put(painter.engine, share)


def export_run(run: Path, export: Export, output: Path | None) -> Iterator[Event]:
    """Write `run` (or one checkpoint of it) as `export` says, in the run's formats where it names none. The moving average,
    where one was kept."""
    begun = time.perf_counter()
    point = newest(run)
    if point is None:
        raise no_checkpoint(run)
    config = settings(file=point.parent / "config.toml")
    if config.train.method == "full" and any(name.startswith("lora") for name in export.formats or ()):
        raise ConfigError(
            f"{run} trained the whole model, there is no adapter in it", "use --formats diffusers single_file"
        )
    checks.strength(export.strength, dora=config.train.method == "dora")
    parts, engine, _ = restore(point, config, torch.device("cpu"))
    formats = list(
        export.formats
        or config.export.formats
        or (["lora_diffusers"] if config.train.method != "full" else ["diffusers"])
    )
    folder = output or settle.unused(point.parent / f"model-{checkpoint.step_of(point):06d}-{export.precision}")
    weights = Between(parts, config.model).scaled(engine.master, export.strength)
    config.settle("export.strength", export.strength, "command line")
    settle.words(config)
    yield from write(parts, weights, folder, formats, export.precision, metadata(config, photos_of(config)))
    yield from inversion.write(parts, weights, folder, config.data.identifier)
    yield Finished("done", checkpoint.step_of(point), time.perf_counter() - begun, str(run), f"model       {folder}")


def newest(run: Path) -> Path | None:
    """`run` itself where it is a checkpoint, else its newest checkpoint, else None."""
    return run if (run / "state.json").is_file() else checkpoint.locate(run, "latest")


def no_checkpoint(run: Path) -> ConfigError:
    return ConfigError(
        f"{run} holds no checkpoint to start from.",
        "Name a run folder (or one of its step-... folders) that was saved.",
    )


def restore(point: Path, config: Config, device: torch.device) -> tuple[Parts, Engine, Drawing]:
    """The model, the engine and the way of drawing as they were when `point` was written; the engine holds the moving
    average where there is one."""
    parts = load_for(config.model)
    checkpoint.require_whole(point)
    state = checkpoint.load(point)
    if state.facts["model"] != parts.digest:
        raise ConfigError(
            f"{point} was trained from another version of {config.model.name} than the one that is there now.",
            "Put the model back, or name it with --model (the run's config.toml has the name it had).",
        )
    policy = Policy.from_json(state.facts["policy"])
    policy = replace(policy, hyper=replace(policy.hyper, anchor=0.0))  # nobody trains here
    try_convolutions(config, policy, device)
    engine = make_engine(config, parts, policy, device)
    adapters.dropout(parts, False)
    _fill(engine, state)
    # checkpoints from before it was kept say nothing
    drawing = Drawing.from_json(state.facts["drawing"]) if "drawing" in state.facts else Drawing(batch=1)
    return parts, engine, drawing


def try_convolutions(config: Config, policy: Policy, device: torch.device) -> None:
    """What the run's plan found out belonged to its process: a card whose fp16 is right only in cuDNN's benchmark mode needs
    that here, too. Raises ConfigError for a card on which it never is."""
    if device.type != "cuda" or policy.math != torch.float16:
        return
    shapes = [*convolved(config, describe(Source.of(config.model))[1])]
    if convolutions.trial(shapes, device) == "none":
        raise ConfigError(
            "Convolutions on this card give no numbers in fp16 (NaN), and this run computes in it.",
            "Add --device cpu.",
        )


def _fill(engine: Engine, state: checkpoint.State) -> None:
    engine.load_state_dict(state.engine)
    if state.average is not None:
        engine.load_master(state.average)
