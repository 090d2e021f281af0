"""One self-contained HTML page: the style sheet, thumbnails as data, and small pieces of markup that report and compare share.

Colours are CSS variables in a light and a dark set (the reader's own choice), plots and pictures lie in the page, nothing is fetched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from .state import RunState

CSS = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1d2126;--muted:#69717c;--grid:#dcdfe3;--instance:#0b7a99;--class:#a4389c;
--plan:#d98a00;--good:#2e8540;--bad:#c0392b;--run0:#0b7a99;--run1:#c2501b;--run2:#5a7d00;--run3:#a4389c;--run4:#8a6d00;--run5:#4b5bd0}
@media(prefers-color-scheme:dark){:root{--page:#14161a;--card:#1c1f25;--ink:#e4e7eb;--muted:#98a1ad;--grid:#343a43;--instance:#4cc3e0;
--class:#e07bd6;--plan:#f0b03f;--good:#6cc87a;--bad:#ff7a6b;--run0:#4cc3e0;--run1:#ff9560;--run2:#a8cf4a;--run3:#e07bd6;--run4:#e0c04a;--run5:#93a0ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.6rem 0 .8rem}
h3{font-size:.95rem;margin:1.2rem 0 .4rem}
p{margin:.4rem 0}.muted,figcaption,th,.tile span{color:var(--muted)}
.status{font-weight:600}.done{color:var(--good)}.interrupted{color:var(--plan)}.failed,.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(135px,1fr));gap:.75rem;margin:1.4rem 0 0}
.tile{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:.7rem .85rem}
.tile b{display:block;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}.tile span{font-size:.82rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:1rem}
.plots.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr))}.plots+.plots{margin-top:1rem}.plots.narrow{display:none}
.plot,.warning,pre{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:.7rem;margin:0}
.plot svg{display:block;width:100%;height:auto;font-family:inherit}
.scroll{overflow-x:auto}.scroll>*{min-width:max-content}
.photos{display:flex;flex-wrap:wrap;gap:.5rem;margin:.6rem 0}.photos img{height:104px;width:auto}
img{display:block;border-radius:5px;background:var(--grid)}
.gone{display:grid;place-items:center;width:104px;height:104px;border:1px dashed var(--grid);border-radius:5px;color:var(--muted);font-size:.75rem}
table{border-collapse:collapse;font-size:.9rem}td,th{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:top;font-weight:400}
tbody tr{border-top:1px solid var(--grid)}td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.grid td,.grid th{padding:.25rem .25rem;border:0}.grid img{width:150px;height:auto}.grid tr{border:0}
.grid th.prompt{padding-top:.9rem;text-align:left}.grid th.seed{position:sticky;left:0;background:var(--page);vertical-align:middle;padding-right:.6rem}
.bar{display:block;height:.6rem;border-radius:3px;background:var(--instance);min-width:2px}.share{width:40%;vertical-align:middle}
.wide{width:100%}
code,pre,.setting{font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}td code{overflow-wrap:anywhere}
.warning{border-left:4px solid var(--plan);margin:.6rem 0}.warning p{margin:0}
.key{margin-right:1.2rem;white-space:nowrap}.key i{display:inline-block;width:1.1rem;height:.25rem;margin-right:.4rem;vertical-align:middle;border-radius:2px}
summary{cursor:pointer;color:var(--muted)}details{margin:.6rem 0}
@media(max-width:600px){.plots.wide{display:none}.plots.narrow{display:grid}main{padding:1.2rem .9rem 3rem}h1{font-size:1.35rem}.grid img{width:112px}.photos img{height:76px}
.setting{overflow-wrap:anywhere}td,th{padding-right:.55rem}}
@media print{.scroll{overflow:visible}details{display:block}}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n" + "\n".join(s for s in sections if s) + "\n</main></body></html>\n"
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
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    kind = ' class="wide"' if wide else ""
    return f'<div class="scroll"><table{kind}><thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>' if body else ""


def plots(svgs: Iterable[str], kind: str = "") -> str:
    """`kind`: "" two abreast, "small" three or four; "wide" and "narrow" only on a screen of that sort."""
    body = "".join(f'<figure class="plot">{svg}</figure>' for svg in svgs)
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
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            small = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError):
        return ""
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def locate(path: str, state: RunState, run: Path) -> Path | None:
    """The file a log speaks of: where it was, or within the run folder if that was moved."""
    there = Path(path)
    if there.is_file():
        return there
    written = state.started.run_dir if state.started else ""
    if written and path.startswith(written):
        moved = run / path[len(written) :].lstrip("/\\")
        return moved if moved.is_file() else None
    return None


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 .. count-1, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
