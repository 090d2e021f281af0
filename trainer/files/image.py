"""One way to open a picture: a regular file, in a format that cameras, phones and paint programs write.

Pillow reads more than that, and asks the bytes and not the name: PostScript called photo.jpg it hands to Ghostscript,
which is a program to run programs with. Such formats are not asked at all.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.files import regular

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "HEIF", "PPM", "TGA")


def opened(source: Path | bytes) -> Image.Image:
    """The picture in a file or in its bytes, not decoded yet. Raises what Pillow raises, and OSError for what is no file."""
    from PIL import Image

    data = source if isinstance(source, bytes) else regular.data(source)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # some need libraries that not every build has
    return Image.open(io.BytesIO(data), formats=known)
