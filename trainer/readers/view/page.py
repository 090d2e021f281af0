"""One self-contained HTML page: the style sheet, thumbnails as data, and small pieces of markup that report and compare
share.

Colours are CSS variables in a light and a dark set (the reader's own choice), plots and pictures lie in the page,
nothing is fetched.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from trainer.files import image
from trainer.readers.view.state import RunState

CSS = (Path(__file__).parent.parent.parent / "assets" / "page.css").read_text(encoding="utf-8")


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A part of the page under its heading; "" where it has no content."""
    body = "\n".join(part for part in parts if part)
    name = title.lower().replace(" ", "-")
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{body}</section>' if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), wide: bool = False) -> str:
    """Cells are HTML; columns in `numbers` stand at the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
        return (
            "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"
        )

    body = "".join(row(cells, "td") for cells in rows)
    kind = ' class="wide"' if wide else ""
    return (
        f'<div class="scroll"><table{kind}><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'
        if body
        else ""
    )


def plots(svgs: Iterable[str], kind: str = "") -> str:
    """`kind`: "" two abreast, "small" three or four; "wide" and "narrow" only on a screen of that sort."""
    body = "".join(f'<figure class="plot">{svg}</figure>' for svg in svgs if svg)
    return f'<div class="plots {kind}">{body}</div>' if body else ""


def picture(path: Path | None, label: str, side: int) -> str:
    """The picture as a small WebP within the page; a labelled gap where the file is gone."""
    data = thumbnail(path, side) if path is not None else ""
    if not data:
        return f'<div class="gone" title="{escape(label)}">gone</div>'
    return f'<img alt="{escape(label)}" title="{escape(label)}" src="{data}">'


@lru_cache(maxsize=4096)
def thumbnail(path: Path, side: int) -> str:
    """A data URI of the picture, `side` pixels at most; "" where it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with image.opened(path) as opened:
            small = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def locate(path: str, state: RunState, run: Path) -> Path | None:
    """The file or folder a log speaks of: as written, seen from where the run was started, or in a moved run folder."""
    candidates = [Path(path)]
    written = Path(state.started.run_dir) if state.started else Path()
    here, parts = run.resolve(), written.parts
    if parts and not written.is_absolute() and here.parts[-len(parts) :] == parts:
        candidates.append(here.parents[len(parts) - 1] / path)
    if parts and Path(path).is_relative_to(written):
        candidates.append(run / Path(path).relative_to(written))
    return next((candidate for candidate in candidates if os.path.exists(candidate)), None)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 .. count-1, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
