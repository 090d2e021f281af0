"""The phases of a run as sizes: each one rehearsed, with what stands beside it on the card and in RAM.

Which module is where in which phase follows stages.py: a loaded model lies in its files and takes no RAM (mapped.py); a
module visits the card alone; the engine has its own copy of what it holds; a streamed denoiser (stream = all) also draws
through the engine. Without a card the card's bytes are RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from trainer.events import PHASES
from trainer.files.safetensors_stream import PIECE_BYTES
from trainer.machine.team import Rehearsed
from trainer.models import learning, read_as
from trainer.models.base import Parts, loaded
from trainer.objective.loss import Objective
from trainer.plan import calibration, rehearse
from trainer.plan.plan import PhasePlan, Standing
from trainer.plan.simulate import Watched
from trainer.policy import Drawing, Policy
from trainer.settings import effect, keeping
from trainer.settings.config import Config
from trainer.step.engine import Engine

TILE = 512  # pixels: what makes a 1024 px picture cost the VAE no more than a 512 px one
MAX_SAMPLE_BATCH = 8
FILLS = 1024 * 1024  # pixels of a picture that keeps a card busy by itself
PNG_SHARE = 0.6  # of the bytes of its pixels that a generated picture keeps as PNG: assumed
SHARES = (1.0, 0.9, 0.75, 0.5)  # of the room that seems left, tried in turn for units that stay
PHOTOS = 5  # DreamBooth's three to six, where the folder is not known


class Rehearsals:
    """Rehearsals of one configuration, each done once."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        kind: str,
        bf16: bool = True,
        constants: calibration.Constants = calibration.ASSUMED,
    ):
        parts = read_as(parts, config.model)
        self.config, self.parts, self.kind, self.constants = config, parts, kind, constants
        # the least approximate first; fp16 has too small a range for a VAE
        self.vae_dtypes = (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)
        self.text = config.train.train_text_encoder
        side = config.data.resolution or parts.side or parts.family.resolution
        self.prior, batch = effect.prior_is_on(config), config.train.train_batch_size
        self.team = Rehearsed(0, config.run.cards)
        rows = -(-effect.rows(config) // self.team.size)  # the most that one card has of a micro-batch
        self.shapes = rehearse.Shapes((side, side), rows, min(batch, rows), config.train.gradient_accumulation_steps,
                                      config.data.masked_loss)  # fmt: skip
        self.objective = Objective.of(config, parts.noise(config.train.zero_terminal_snr, (side, side)))
        self.sizes = {name: _fp32(module) for name, module in parts.modules().items()}
        self.steps: dict[Policy, Watched] = {}
        self.standing: dict[Policy, Standing] = {}
        self.split: dict[Policy, dict[str, int]] = {}
        self.rehearsed: dict[object, int] = {}
        self.unit_count, self.draws = 0, False  # draws: whether a step draws random numbers (dropout)
        self.adapted = False

    # the step

    def work(self, policy: Policy) -> Watched:
        """One optimizer step, simulated once per policy, and eagerly: a recording runs the same operators."""
        policy = _eager(policy)
        if policy not in self.steps:
            self._adapt()
            with rehearse.engine(self.parts, policy, text=self.text, team=self.team) as made:
                self.standing[_eager(policy)] = rehearse.standing(made, policy, len(self.shapes.micro_batches()) > 1)
                self.unit_count, self.draws = len(made.units), any(made.runner.draws)
                rehearsal = partial(rehearse.train, self.parts, made, text=self.text, objective=self.objective)
                watched = rehearsal(self.shapes)
                if self.prior and self.config.data.buckets:  # class images are square: a step may have them apart
                    apart = rehearsal(replace(self.shapes, apart=True))
                    watched = max(watched, apart, key=lambda step: step.card_peak)
                self.split[policy] = rehearse.split_state(watched.card_parts, made)
            self.steps[policy] = self._clipped_too(policy, watched) if policy.early_updates else watched
        return self.steps[policy]

    def _clipped_too(self, policy: Policy, early: Watched) -> Watched:
        """A step whose updates are early, with the room for one whose gradients wait: a step that is clipped is made again so."""
        plain = self.work(policy.late)
        # sums of micro-batches wait in fp32, for which early updates have no bytes to lend
        wide = self.standing[policy].trained if len(self.shapes.micro_batches()) > 1 else 0
        worst = max(early, plain, key=lambda step: step.card_peak)
        pages, host = max(early.card_pages, plain.card_pages), max(early.host_peak + wide, plain.host_peak)
        return replace(early, card_peak=worst.card_peak, card_parts=worst.card_parts, card_pages=pages, host_peak=host)

    def step_bytes(self, policy: Policy) -> int:
        return self.constants.process(self.step_tensors(policy), self._step_pages(policy))

    def _step_pages(self, policy: Policy) -> int:
        """What the allocator holds for a step's tensors."""
        return self.work(policy).card_pages + self._recording(policy)

    def step_tensors(self, policy: Policy) -> int:
        return self.work(policy).card_peak + self._recording(policy)

    def repeats(self) -> bool:
        """Whether a step may be recorded and replayed, as far as the run decides that."""
        return self.kind == "cuda" and self.team.size == 1 and not self.draws

    def _recording(self, policy: Policy) -> int:
        """Bytes that recorded steps take more than eager ones."""
        return int(calibration.RECORDING_SHARE.amount * _own(self.work(policy))) if policy.cuda_graphs else 0

    def at_least(self, policy: Policy) -> int:
        """A lower bound of `step_bytes` without a simulation: what the engine keeps between steps, and what was simulated
        with gradients on the card, less all gradients."""
        self._adapt()
        policy = _eager(policy)
        if policy not in self.standing:
            with rehearse.engine(self.parts, policy, text=self.text, team=self.team) as made:
                self.standing[_eager(policy)] = rehearse.standing(made, policy, len(self.shapes.micro_batches()) > 1)
        bounds = [self.standing[_eager(policy)].card]
        sibling = self.steps.get(replace(policy, gradients="card"))
        if sibling is not None:
            bounds.append(sibling.card_peak - self.standing[_eager(policy)].trained)
        return self.constants.process(max(bounds))

    def residents(self, policy: Policy, budget: int) -> Iterator[int]:
        """Numbers of units to keep on the card, largest first: the largest that should fit, then somewhat fewer."""
        empty, standing = self.step_bytes(policy), self.standing[_eager(policy)]
        if policy.stream == "all":  # what stays is there from the beginning, beside the encoders and the drawing
            small = Drawing(tile=self.config.memory.vae_tile or TILE, vae_dtype=self.vae_dtypes[-1])
            vae = max(self._vae(small, decode=True), self._vae(small, decode=False))
            early = max(0 if self.text else self._encode(), self._draw(policy, 1), vae)
            empty = max(empty, self.constants.process(early))
        spare = (budget - empty) / (1 + self.constants.allocator.amount)
        taken, kept = [0], 0  # by the number of units that stay
        for count, block in enumerate(standing.blocks, 1):
            kept += block
            following = standing.blocks[count] if count < len(standing.blocks) else 0
            taken.append(kept - 2 * (standing.blocks[0] - following))  # a window holds two units at a time
        counts = (max(n for n, size in enumerate(taken) if n == 0 or size <= share * spare) for share in SHARES)
        yield from (count for count in dict.fromkeys(counts) if count > 0)

    def larger_batch(self, policy: Policy, budget: int | None) -> int:
        """The largest power of two times the batch whose step fits, taking all that is not standing to grow with it."""
        batch = self.config.train.train_batch_size
        if budget is None:
            return batch
        work = self.work(policy)
        own = _own(work) + self._recording(policy)
        factor = 1
        while factor < 8 and self.constants.process(work.card_kept + 2 * factor * own) <= budget:
            factor *= 2
        return batch * factor

    # all phases

    def all(self, policy: Policy, budget: int | None) -> tuple[tuple[PhasePlan, ...], Drawing]:
        """The phases in the order of events.PHASES, and how pictures are drawn in them."""
        work, standing = self.work(policy), self.standing[_eager(policy)]
        process = int(calibration.PROCESS_RAM_BYTES.amount)
        drawing = self._fit_drawing(policy, budget)
        average = standing.average if self.config.train.ema else 0
        early = standing if policy.stream == "all" else Standing()  # then the engine draws the class images, too
        before, ram = process + early.host, process + work.host_peak + average + self.latents()
        parked = standing.card - standing.weights if drawing.park else 0
        to_ram = parked - standing.anchor if parked else 0  # the anchor lies in the model's file
        pictures = max(self._draw(policy, drawing.batch), self._vae(drawing, decode=True))
        unit = self._export(policy)  # one unit's weights in fp32, where they are
        away, on_card = policy.stream == "all", policy.stream != "all" or policy.resident_units > 0
        found = [
            self._phase("load", 0, 0, process),
            self._phase("cache images", early.card, self._vae(drawing, decode=False), before + self.latents()),
            self._phase(
                "train",
                work.card_kept,
                _own(work) + self._recording(policy),
                ram,
                self._train_parts(policy),
                self._step_pages(policy),
            ),
            replace(self._phase("sample", standing.card - parked, pictures, ram + to_ram), parked_bytes=to_ram),
            self._phase("save", standing.card, 0, ram + PIECE_BYTES),
            self._phase("export", standing.card, unit if on_card else 0, ram + PIECE_BYTES + (unit if away else 0)),
        ]
        if self.prior and self.config.prior.by == "images":
            drawn = self._draw_base(policy, min(drawing.batch, self.class_images()))
            visiting = max(drawn, early.card + self._vae(drawing, decode=True))
            found.append(self._phase("class images", 0, visiting, before))
        if self.prior or not self.text:  # a text encoder that learns is read before the engine takes it over
            found.append(self._phase("cache text", 0 if self.text else early.card, self._encode(), before))
        return tuple(sorted(found, key=lambda phase: PHASES.index(phase.name))), drawing

    def _train_parts(self, policy: Policy) -> dict[str, int]:
        return self.split[_eager(policy)] | {"graphs": self._recording(policy)}

    def _phase(
        self, name: str, standing: int, own: int, ram: int, parts: dict | None = None, pages: int = 0
    ) -> PhasePlan:
        tensors, parts = standing + own, parts or {"standing": standing, "phase": own}
        parts = {kind: size for kind, size in parts.items() if size}
        if self.kind == "cpu":
            return PhasePlan(name, 0, ram + tensors, parts)
        vram = self.constants.process(tensors, pages)
        return PhasePlan(name, vram, ram, parts | self.constants.overhead(tensors, pages))

    def _fit_drawing(self, policy: Policy, budget: int | None) -> Drawing:
        """The least approximate way for the VAE, and the largest batch of pictures, that fit the budget. The optimizer state
        stays on the card where four pictures, or one that fills it, then still take less than the step: RAM is scarcer than
        a preview's seconds."""
        asked = self.config.memory.vae_tile
        if self.kind != "cuda":
            return Drawing(tile=asked)
        room = float("inf") if budget is None else budget
        standing = self.standing[_eager(policy)]
        early = standing.card if policy.stream == "all" else 0

        def vae_fits(way: Drawing) -> bool:
            decoding, encoding = self._vae(way, decode=True), self._vae(way, decode=False)
            return self.constants.process(max(standing.weights + decoding, early + encoding)) <= room

        def fits(way: Drawing) -> bool:
            stays = standing.weights if way.park else standing.card
            own = stays + max(self._draw(policy, way.batch), self._vae(way, decode=True))
            limit = room if way.park else min(room, self.step_bytes(policy))
            return self.constants.process(max(own, self._draw_base(policy, way.batch))) <= limit

        tiles = [asked] if asked else [None, TILE, TILE // 2]
        kinds = [(dtype, tile) for dtype in self.vae_dtypes for tile in tiles]
        ways = [Drawing(tile=tile, vae_dtype=dtype, denoiser_dtype=policy.math) for dtype, tile in kinds]
        drawing = next(filter(vae_fits, ways), ways[-1])
        batches = (MAX_SAMPLE_BATCH, 4, 2, 1)
        fills = self.shapes.size[0] * self.shapes.size[1] >= FILLS
        parks = [(False, batch) for batch in (batches if fills else batches[:2])] + [(True, batch) for batch in batches]
        ways = [replace(drawing, park=park, batch=batch) for park, batch in parks]
        return next(filter(fits, ways), ways[-1])

    def _vae(self, drawing: Drawing, decode: bool) -> int:
        """Bytes of the VAE and one picture."""
        size, tile, dtype = self.shapes.size, drawing.tile, drawing.vae_dtype
        tile = None if tile is not None and max(size) <= tile else tile
        rehearsal = rehearse.decode_picture if decode else rehearse.encode_picture

        def run() -> int:
            _cast(loaded(self.parts.vae), dtype)
            return rehearsal(self.parts, size, tile).card_peak

        return self._once(("vae", decode, dtype, tile), run)

    def _encode(self) -> int:
        return self._once("text", lambda: rehearse.encode_text(self.parts).card_peak)

    def _draw(self, policy: Policy, pictures: int) -> int:
        """Bytes that drawing through the engine takes beside its standing weights."""

        def run() -> int:
            with rehearse.engine(self.parts, policy, text=self.text, team=self.team) as made:
                return _own(rehearse.draw(self.parts, self._through(made), self.shapes.size, 1, made))

        return pictures * self._once(("draw", _eager(policy).late), run)

    def _through(self, made: Engine) -> nn.Module:
        return made.as_module(loaded(self.parts.denoiser), self.parts.family)

    def _draw_base(self, policy: Policy, pictures: int) -> int:
        """Bytes that drawing class images takes, the denoiser included."""
        if not self.prior:
            return 0
        standing = self.standing[_eager(policy)]
        if policy.stream == "all":
            return standing.card + self._draw(policy, pictures)

        dtype = policy.math if self.kind == "cuda" else torch.float32

        def run() -> int:
            return _own(rehearse.draw(self.parts, _cast(loaded(self.parts.denoiser), dtype), self.shapes.size, 1))

        return self.sizes[self.parts.family.names.denoiser] // 4 * dtype.itemsize + pictures * self._once(
            ("draw base", dtype), run
        )

    def _export(self, policy: Policy) -> int:
        def run() -> int:
            with rehearse.engine(self.parts, policy, text=self.text, team=self.team) as made:
                return _own(rehearse.export(made))

        return self._once(("export", policy.weights, policy.stream), run)

    def _once(self, name: object, run: Callable[[], int]) -> int:
        if name not in self.rehearsed:
            self.rehearsed[name] = run()
        return self.rehearsed[name]

    def _adapt(self) -> None:
        """What learns, as the stages have it before the engine is made."""
        if not self.adapted:
            with torch.device("meta"):
                learning.prepare(self.parts, self.config)
            self.adapted = True

    def class_images(self) -> int:
        """How many class images there will be, those of other prompts among them."""
        config = self.config.prior
        count = (config.num_class_images or self.parts.family.defaults.class_images) if self.prior else 0
        return count + keeping.others(count, config.others)

    def latents(self) -> int:
        """Encoded photos and class images, in the cache and in RAM: fp32 means and deviations."""
        (width, height), parts = self.shapes.size, self.parts
        one = 2 * 4 * parts.latents.channels * (width * height // parts.latents.factor**2)
        return (PHOTOS + self.class_images()) * one

    def disk(self, policy: Policy) -> int:
        """What a run writes to disk: caches, class images, checkpoints and exports, from counts and shapes."""
        (width, height), config, defaults = self.shapes.size, self.config, self.parts.family.defaults
        pictures, saved = int(self.class_images() * 3 * width * height * PNG_SHARE), self.standing[_eager(policy)].saved
        checkpoints = 1
        if config.checkpoint.checkpointing_steps:
            checkpoints = -(-(config.train.max_train_steps or defaults.steps) // config.checkpoint.checkpointing_steps)
        checkpoints = min(checkpoints, config.checkpoint.checkpoints_total_limit or checkpoints)
        whole = sum(self.sizes.values()) // 4 * (4 if config.export.precision == "fp32" else 2)
        formats = len(config.export.formats or ("", ""))
        exports = formats * (whole if config.train.method == "full" else saved)
        return self.latents() + pictures + checkpoints * saved + exports


def _eager(policy: Policy) -> Policy:
    return replace(policy, cuda_graphs=False)


def _fp32(module: nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in module.parameters())


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """nn.Module.to, past diffusers' warning, which is about checkpoints."""
    return nn.Module.to(module, dtype)


def _own(watched: Watched) -> int:
    return watched.card_peak - watched.card_kept
