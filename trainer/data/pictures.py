"""One picture file as upright 8-bit RGB, whatever the camera, the phone or the paint program wrote.

EXIF rotation is applied, 16-bit and float greys are scaled to 8 bits, palettes and CMYK are converted,
animations give their first frame. Colours come out as sRGB, in which the models learned: a colour profile in the file
(Display P3 of a phone, Adobe RGB, a scanner's own) is applied. Transparency is laid on white, the most common ground of product pictures;
its alpha is kept beside the colours, so that a masked loss can leave the invisible part out.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError

from trainer.files import image, regular
from trainer.machine.libraries import fault, loads, there

PICTURE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".jp2",
        ".avif",
        ".heic",
        ".heif",
        ".ppm",
        ".pgm",
        ".tga",
    }
)
CONVERTED = b"profile to sRGB 1"  # what was cached of a picture before its profile was applied must not be taken
SMALLER_COPY = 254  # TIFF's NewSubfileType: bit 0 says that a page is another one made smaller
NEEDS = "HEIC needs"
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF8": "GIF"}
HEAD = 12  # bytes that tell the kind


class Unreadable(ValueError):
    """This file is no picture that can be trained on; the message says why and, where there is one, the way out."""


@dataclass(frozen=True)
class Picture:
    """rgb: upright, 8 bits; alpha: greyscale of the same size, or None where every pixel is opaque."""

    rgb: Image.Image
    alpha: Image.Image | None
    digest: str  # sha256 of the file's bytes, and of how its colours were read where a profile changed them
    pages: int = 1  # of a scanner's TIFF; previews of its first page do not count

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), after rotation."""
        return self.rgb.size


def read(path: Path) -> Picture:
    """Decode `path` completely. Raises Unreadable with the reason, so that no broken file is met in the middle of a run."""
    named_so = path.suffix.lower() in HEIF_SUFFIXES
    if named_so:
        _allow_heif()
    try:
        data = regular.data(path)
    except OSError as error:
        raise Unreadable(error.strerror or "it cannot be opened") from error
    if not named_so and _kind(data[:HEAD]) == "HEIC":  # phones and messengers call it .jpg
        _allow_heif()
    if not data:
        raise Unreadable("the file is empty")
    try:
        with image.opened(data) as found:
            pages = _pages(found)
            found.load()
            upright = ImageOps.exif_transpose(found)
            colours = _in_srgb(upright)
            rgb, alpha = _flatten(colours)
            converted = colours is not upright
    except UnidentifiedImageError as error:
        raise Unreadable("not a picture, or a format that Pillow cannot read") from error
    except Image.DecompressionBombError as error:
        raise Unreadable("more pixels than any photo has; scale it down first") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        struct.error,
        zlib.error,
    ) as error:  # what Pillow's decoders raise on broken files
        raise Unreadable(f"damaged or cut short ({error})") from error
    return Picture(rgb, alpha, hashlib.sha256(data + CONVERTED * converted).hexdigest(), pages)


def _kind(head: bytes) -> str:
    """What a file's first bytes say that it is, of what cameras and phones write; empty: none of these."""
    if head[4:8] == b"ftyp":
        return {b"avif": "AVIF"}.get(head[8:12], "HEIC" if head[8:12] in HEIF_BRANDS else "")
    if head[:4] == b"RIFF":
        return "WebP" if head[8:12] == b"WEBP" else ""
    return next((kind for start, kind in STARTS.items() if head.startswith(start)), "")


def otherwise_named(files: Iterable[Path]) -> list[str]:
    """Names of files that hold a picture although their names do not say so: "a.jpg_large", "photo", "b.jpg?w=640"."""
    found = []
    for path in files:
        try:
            with regular.opened(path) as file:
                if _kind(file.read(HEAD)):
                    found.append(path.name)
        except OSError:  # nothing that could be read is lost by its name
            continue
    return found


def _pages(found: Image.Image) -> int:
    """Pages of a TIFF that are pictures of their own. Leaves the first one to be read, whatever the others are like."""
    if found.format != "TIFF" or getattr(found, "n_frames", 1) == 1:
        return 1
    pages = 0
    try:
        for page in ImageSequence.Iterator(found):
            pages += not page.tag_v2.get(SMALLER_COPY, 0) & 1
    except (OSError, ValueError, TypeError, KeyError, struct.error):
        pass
    found.seek(0)
    return max(1, pages)


def _allow_heif() -> None:
    if not loads("pillow_heif"):
        if there("pillow_heif"):
            raise Unreadable(f"{NEEDS} pillow-heif, which does not load ({fault('pillow_heif')}); convert it to JPEG")
        raise Unreadable(f"{NEEDS} one more package: pip install pillow-heif (or convert it to JPEG)")
    import pillow_heif

    pillow_heif.register_heif_opener()


def _in_srgb(image: Image.Image) -> Image.Image:
    """`image` itself where its colours are sRGB already (said or unsaid), else a converted copy with its transparency."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode in ("I", "F") or image.mode.startswith("I;"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _means_srgb(source):
            return image
        mode = {"P": "RGB", "PA": "RGBA", "1": "L", "LA": "LA"}.get(image.mode, image.mode)
        image_in = image.convert("RGBA" if mode == "RGB" and image.has_transparency_data else mode)
        alpha = image_in.getchannel("A") if image_in.mode in ("RGBA", "LA") else None
        plain = image_in.convert(image_in.mode.removesuffix("A")) if alpha else image_in
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # profiles for another kind of picture, or damaged
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _means_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile changes next to nothing: sRGB comes in dozens of spellings, so a ramp of colours is asked."""
    levels = np.linspace(0, 255, 6, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(36, 6, 3)
    if profile.profile.xcolor_space.strip() != "RGB":
        return False
    asked = Image.fromarray(cube)
    told = ImageCms.profileToProfile(asked, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return int(np.abs(np.asarray(told).astype(int) - cube).max()) <= 2


def _flatten(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(RGB, alpha or None). Modes: https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes"""
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_8bit(image).convert("RGB"), None
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    ground = Image.new("RGBA", rgba.size, "white")
    ground.alpha_composite(rgba)
    return ground.convert("RGB"), None if alpha.getextrema() == (255, 255) else alpha


def _grey_to_8bit(image: Image.Image) -> Image.Image:
    """Integer greys deeper than 8 bits are 16-bit by convention; float greys are 0..1 unless they reach further."""
    values = np.asarray(image, dtype=np.float64)
    peak = values.max(initial=0.0)
    full = (
        (1.0 if peak <= 1 else 255.0 if peak <= 255 else peak)
        if image.mode == "F"
        else (255.0 if peak <= 255 and image.mode == "I" else 65535.0)
    )
    return Image.fromarray((values / full * 255).clip(0, 255).round().astype(np.uint8))
