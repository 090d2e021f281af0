"""The recipe: npm packages -> cut-outs -> scenes -> autoencoder -> latents -> denoiser and text encoder -> judge ->
evaluation -> assets, in that order, each step skipped when its result is there.

Time budgets are minutes, so the same command ends when it should on a laptop and on a data-centre card: with a GPU ask
for `--classes 45 --designs all` and let it train to convergence. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from trainer.guard import judge as judges

from . import assets, cutouts, evaluate, judge, scenes, subjects, text, unet, vae
from .pace import Pace

STEPS = ("scenes", "vae", "latents", "unet", "judge", "assets", "evaluate")


def main(argv: list[str]) -> int:
    import torch

    ask = parser().parse_args(argv)
    device = ask.device if ask.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(ask.threads)
    work, out = Path(ask.work), Path(ask.out)
    work.mkdir(parents=True, exist_ok=True)
    wanted = ask.only or STEPS
    modules = cutouts.fetch(work)
    designs = cutouts.render(modules, cutouts.class_labels(ask.classes), work / "cutouts")
    parts = scenes.split(designs, subjects.HELD_OUT)
    scenes.save_split(parts, work / "split.json")
    text.write_tokenizer(work, work / "tokenizer")
    subjects.write(designs, work / "cutouts", modules, out / "subjects")

    if "scenes" in wanted:
        draw_scenes(work, parts, modules, {"held": 1, "train": ask.scenes, "calm": 3}, ask.threads)
    coder = work / "vae"
    if "vae" in wanted and not (coder / "config.json").exists():
        vae.train_encoder(work / "scenes", coder, ask.minutes * 0.05, device, base_lr=3e-3)
    for kind in ("train", "calm"):
        if "latents" in wanted and not (work / f"latents-{kind}.npy").exists():
            vae.encode_all(work / "scenes", coder, work, kind, device)
    if "vae" in wanted and not (work / "decoder.done").exists():
        vae.train_decoder(work / "scenes", coder, ask.minutes * 0.25, device)
        (work / "decoder.done").touch()
    if "judge" in wanted and not (work / "judge/judge.json").exists():
        judge.train(work / "scenes", parts.classes, work / "judge", ask.minutes * 0.1, device)
    if not {"unet", "assets", "evaluate"} & set(wanted):
        return 0
    kind = "calm" if ask.designs == "few" else "train"
    latents, shows = (
        np.load(work / f"latents-{kind}.npy", mmap_mode="r"),
        vae.pictures(work / "scenes", kind)[1].numpy(),
    )
    captions = unet.Captions(load_tokenizer(work), parts.classes, shows)
    if "unet" in wanted:
        pace, start = Pace(ask.minutes * 0.6, ask.lr), Path(ask.start) if ask.start else None
        unet.train(captions, latents, work / "unet", pace, device, ask.batch, start)
    if "assets" in wanted:
        assets.write_model(
            assets.average_from(work / "unet/state.pt", captions), coder, work / "tokenizer", out / "model"
        )
        assets.write_judge(work / "judge", out / "judge")
    if "evaluate" in wanted:
        split = json.loads((work / "split.json").read_text())
        numbers, sheet = evaluate.run(out, work / "scenes", parts.classes, sorted(parts.pairs))
        assets.write_sheet(sheet, out / "sheet.png")
        evaluate.write_card(numbers, split, training(work, device, ask, len(latents), shows), out)
        print(json.dumps({k: v for k, v in numbers.items() if not isinstance(v, dict)}))
    return 0


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m benchmarks demo", description=__doc__.split("\n\n")[0])
    options.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options.add_argument("--classes", type=int, default=14, help="how many classes of classes.json, easiest first")
    options.add_argument(
        "--designs",
        choices=("few", "all"),
        default="few",
        help="few: the denoiser sees four plain drawings of a class, in one pose, often enough to learn them on a CPU",
    )
    options.add_argument("--minutes", type=float, default=120, help="all training together, on the machine at hand")
    options.add_argument("--scenes", type=int, default=14, help="files of 4,096 training scenes")
    options.add_argument(
        "--batch", type=int, default=32, help="pictures a step of the denoiser; half in the first part"
    )
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--start", help="a finished demo model to go on from, instead of from random weights")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--work", default="demo_build", help="scratch folder; what is there is not made again")
    options.add_argument("--out", default=str(judges.ASSETS))
    options.add_argument("--only", nargs="*", choices=STEPS, help="these steps only")
    return options


def draw_scenes(work: Path, parts: scenes.Split, modules: Path, counts: dict[str, int], processes: int) -> None:
    folder = work / "scenes"
    folder.mkdir(exist_ok=True)
    few = json.loads((cutouts.HERE / "classes.json").read_text())["few"]
    plain = tuple(d for d in parts.train if d.key in few.get(d.class_name, [d.key]))
    drawn = {"held": parts.held_out, "train": parts.train, "calm": plain}
    jobs = [
        (str(folder), kind, i, drawn[kind], parts, str(modules), scenes.SHARD)
        for kind, count in counts.items()
        for i in range(count)
    ]
    with Pool(processes) as pool:
        for name in pool.imap_unordered(scenes.shard, jobs):
            print("scenes", name, flush=True)


def load_tokenizer(work: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def training(work: Path, device: str, ask, scene_count: int, shows: np.ndarray) -> dict:
    """What the card says about training, from the checkpoint and this machine."""
    import torch

    state = torch.load(work / "unet/state.pt", map_location="cpu")
    count = sum(v.numel() for k, v in state["model"].items() if k.startswith("unet."))
    begun = "going on from an earlier model" if ask.start else "from scratch"
    words = (
        f"Denoiser and text encoder, {begun}: {state['step']:,} steps, {state['pictures']:,} pictures drawn from "
        f"{scene_count:,} scenes of {len(np.unique(shows[:, 1]))} drawings, {state['seconds'] / 60:.0f} minutes on {device} "
        f"({platform.processor() or platform.machine()}, {ask.threads} thread(s)); AdamW {ask.lr:g}, min-SNR 5, EMA. "
        f"The recipe draws more classes when given more compute: `python -m benchmarks demo --classes 45 --designs all` on a GPU."
    )
    history = work / "history.txt"  # what a person changed by hand during a run, in their words
    words += " " + history.read_text().strip() if history.exists() else ""
    return {
        "unet_parameters": count,
        "steps": state["step"],
        "pictures": state["pictures"],
        "seconds": state["seconds"],
        "words": words,
    }
