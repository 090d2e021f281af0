"""Cut-outs: every drawing of a class that the free emoji sets hold, as transparent 128 px pictures.

One emoji is drawn independently by several teams, so "dog" comes as twenty different dogs: a *design* is one
team's drawing of one emoji. Designs that share a drawing (Fluent ships the same shape shaded and flat) share a
*family*, and a design is held out with its whole family, so nothing held out was seen in another coat of paint.
The sets are npm packages with their licence beside them; SVGs are rendered by resvg.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PACKAGES = {  # npm name -> (version, licence, what it is)
    "@lobehub/fluent-emoji-3d": ("1.1.0", "MIT", "Fluent Emoji (3D), Microsoft"),
    "@iconify-json/fluent-emoji-flat": ("1.2.6", "MIT", "Fluent Emoji (flat), Microsoft"),
    "@iconify-json/noto": ("1.2.9", "Apache-2.0", "Noto Emoji, Google"),
    "@iconify-json/noto-v1": ("1.2.5", "Apache-2.0", "Noto Emoji (first version), Google"),
    "@iconify-json/fxemoji": ("1.2.2", "Apache-2.0", "Firefox OS Emoji, Mozilla"),
    "@iconify-json/twemoji": ("1.2.5", "CC-BY-4.0", "Twemoji, Twitter and contributors"),
    "@iconify-json/emojione": ("1.2.3", "CC-BY-4.0", "EmojiOne 2, Ranks.com"),
    "emojibase-data": ("17.0.0", "MIT", "names and code points of emoji, Miles Johnson"),
    "@pmndrs/assets": ("1.7.0", "CC0-1.0", "panoramas of Poly Haven, packaged by Poimandres"),
}
SETS = {  # set -> (family, npm name); Fluent's two coats of paint are one family
    "fluent3d": ("fluent", "@lobehub/fluent-emoji-3d"),
    "fluentflat": ("fluent", "@iconify-json/fluent-emoji-flat"),
    "noto": ("noto", "@iconify-json/noto"),
    "noto1": ("noto1", "@iconify-json/noto-v1"),
    "fx": ("fx", "@iconify-json/fxemoji"),
    "twemoji": ("twemoji", "@iconify-json/twemoji"),
    "emojione": ("emojione", "@iconify-json/emojione"),
}
SIDE = 128


@dataclass(frozen=True)
class Design:
    """One team's drawing of one emoji."""

    class_name: str
    label: str
    set_name: str

    @property
    def family(self) -> str:
        """What is held out together: the drawing, whatever its shading."""
        return f"{SETS[self.set_name][0]}/{slug(self.label)}"

    @property
    def key(self) -> str:
        return f"{self.class_name}/{self.set_name}/{slug(self.label)}"


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def class_labels(count: int | None = None) -> dict[str, list[str]]:
    """Class name -> emoji labels; the first classes of the file are the easiest to draw."""
    table = json.loads((HERE / "classes.json").read_text())["classes"]
    return dict(list(table.items())[:count])


def fetch(folder: Path) -> Path:
    """The npm packages, unpacked; does nothing where they already are."""
    modules = folder / "npm" / "node_modules"
    wanted = [f"{name}@{version}" for name, (version, _, _) in PACKAGES.items()]
    if not all((modules / name).exists() for name in PACKAGES):
        modules.parent.mkdir(parents=True, exist_ok=True)
        (modules.parent / "package.json").write_text("{}")
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *wanted], cwd=modules.parent, check=True
        )
    return modules


def render(modules: Path, labels: dict[str, list[str]], folder: Path) -> list[Design]:
    """Renders what is missing to `folder/<key>.png` and returns every design there is."""
    import resvg_py

    codes = {
        entry["label"]: entry["hexcode"].lower()
        for entry in json.loads((modules / "emojibase-data/en/data.json").read_text())
    }
    icons = {name: _icons(modules / package) for name, (_, package) in SETS.items() if name != "fluent3d"}
    designs = []
    for class_name, class_designs in labels.items():
        for label in class_designs:
            for set_name in SETS:
                design = Design(class_name, label, set_name)
                path = folder / f"{design.key}.png"
                if not path.exists():
                    if set_name == "fluent3d":
                        picture = _fluent3d(modules, codes.get(label, ""))
                    else:
                        svg = _svg(icons[set_name], label, codes.get(label, ""))
                        picture = svg and Image.open(
                            io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))
                        )
                    if not picture:
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _trim(picture.convert("RGBA")).save(path)
                designs.append(design)
    return designs


def load(folder: Path, design: Design) -> np.ndarray:
    """(128, 128, 4) floats in 0..1, colour not multiplied by alpha."""
    return np.asarray(Image.open(folder / f"{design.key}.png").convert("RGBA"), np.float32) / 255


def _icons(package: Path) -> dict:
    data = json.loads((package / "icons.json").read_text())
    chars = package / "chars.json"
    data["chars"] = json.loads(chars.read_text()) if chars.exists() else {}
    return data


def _svg(data: dict, label: str, code: str) -> str | None:
    name = data["chars"].get(code) or data["chars"].get(code.replace("-fe0f", "")) or slug(label)
    icon = data["icons"].get(name)
    if icon is None:
        return None
    width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
        f"{icon['body']}</svg>"
    )


def _fluent3d(modules: Path, code: str) -> Image.Image | None:
    for name in (code, code.replace("-fe0f", ""), f"{code}-fe0f"):
        path = modules / "@lobehub/fluent-emoji-3d/assets" / f"{name}.webp"
        if name and path.exists():
            return Image.open(path)
    return None


def _trim(picture: Image.Image) -> Image.Image:
    """Cropped to what is drawn and centred in a square, so that "scale" means the same for every set."""
    box = picture.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox() or (0, 0, *picture.size)
    picture = picture.crop(box)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
