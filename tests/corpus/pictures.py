"""Folders of photos that hold none, or something else under a photo's name, and captions that are none: the files by name, and
what is said of them."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from photos import noise_picture

Made = bytes | str | Callable[[], bytes] | Callable[[Path], object]


def png(size=(80, 64)) -> bytes:
    stream = io.BytesIO()
    noise_picture(size, 7).save(stream, "PNG")
    return stream.getvalue()


def broken_png() -> bytes:
    data = bytearray(png())
    data[len(data) // 2] ^= 255
    return bytes(data)


def bomb() -> bytes:
    """A PNG that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


PICTURES = (png, broken_png, bomb)  # they make content; other functions make what stands at a path

# with these a run is refused
PHOTOS = {
    "only-text": ({"notes.txt": "my photos"}, "no photos in pictures"),
    "only-hidden": ({".a.png": png}, "no photos in pictures"),
    "empty-jpg": ({"a.jpg": ""}, "the file is empty"),
    "text-named-jpg": ({"a.jpg": "a dog"}, "not a picture, or a format that Pillow cannot read"),
    "postscript-named-jpg": (
        {"a.jpg": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n"},
        "not a picture, or a format that Pillow cannot read",
    ),
    "html-named-png": (
        {"a.png": "<html><script>alert(1)</script></html>"},
        "not a picture, or a format that Pillow cannot read",
    ),
    "svg": ({"a.svg": "<svg/>"}, "no photos in pictures that can be read, but 1 .svg"),
    "cut-png": ({"a.png": png()[:300]}, "damaged or cut short ("),
    "damaged-png": (
        {"a.png": broken_png},
        "damaged or cut short (",
    ),
    "bomb": ({"a.png": bomb}, "more pixels than any photo has; scale it down first"),
    "pipe-named-jpg": ({"a.jpg": lambda path: os.mkfifo(path)}, "a pipe, not a file"),
    "device-named-jpg": ({"a.jpg": lambda path: path.symlink_to("/dev/zero")}, "a device, not a file"),
    "broken-link": ({"a.jpg": lambda path: path.symlink_to("gone")}, "No such file or directory"),
    "link-to-itself": ({"a.jpg": lambda path: path.symlink_to("a.jpg")}, "Too many levels of symbolic links"),
    "folder-named-png": ({"a.png": lambda path: path.mkdir()}, "no photos in pictures"),
    "one-pixel": ({"a.png": png((1, 1))}, "1 x 1 px is too small for 64 px"),
    "a-line": ({"a.png": png((2000, 8))}, "2000 x 8 px is too small for 64 px"),
    "control-characters": ({"a\x1b[2J.jpg": "a dog"}, "not a picture, or a format that Pillow cannot read"),
    "line-in-name": ({"a\nb.jpg": "a dog"}, "not a picture, or a format that Pillow cannot read"),
    "not-utf8-name": ({os.fsdecode(b"\xff\xfe.jpg"): "a dog"}, "its name, or its folder's, is not UTF-8: rename it"),
    "255-bytes": ({"a" * 251 + ".jpg": "a dog"}, "not a picture, or a format that Pillow cannot read"),
    "repeats-0": (
        {"0_hta dog": lambda path: (path.mkdir(), (path / "a.png").write_bytes(png()))},
        "has no photos itself, but its folder 0_hta dog has",
    ),
    "repeats-absurd": (
        {"99999999999_hta dog": lambda path: (path.mkdir(), (path / "a.png").write_bytes(png()))},
        "has no photos itself, but its folder 99999999999_hta dog has",
    ),
    "metadata-not-json": (
        {"a.png": png, "metadata.jsonl": "{file_name: a.png}\n"},
        "metadata.jsonl line 1 is not a JSON object with file_name and text",
    ),
    "metadata-a-list": (
        {"a.png": png, "metadata.jsonl": '["a.png", "a dog"]\n'},
        "metadata.jsonl line 1 is not a JSON object with file_name and text",
    ),
    "metadata-a-number": (
        {"a.png": png, "metadata.jsonl": "3\n"},
        "metadata.jsonl line 1 is not a JSON object with file_name and text",
    ),
    "metadata-without-name": (
        {"a.png": png, "metadata.jsonl": '{"text": "a dog"}\n'},
        "metadata.jsonl line 1 is not a JSON object with file_name and text",
    ),
    "metadata-name-a-number": (
        {"a.png": png, "metadata.jsonl": '{"file_name": 3, "text": "a dog"}\n'},
        "metadata.jsonl line 1 has a file_name or text that is no text",
    ),
    "metadata-text-a-list": (
        {"a.png": png, "metadata.jsonl": '{"file_name": "a.png", "text": ["a dog"]}\n'},
        "metadata.jsonl line 1 has a file_name or text that is no text",
    ),
    "metadata-not-utf8": (
        {"a.png": png, "metadata.jsonl": lambda path: path.write_bytes(b'{"file_name": "a.png", "text": "\xff"}')},
        "metadata.jsonl is not UTF-8 text",
    ),
    "metadata-deep": (
        {"a.png": png, "metadata.jsonl": '{"file_name": "a.png", "text": ' + "[" * 9999 + "]" * 9999 + "}"},
        "metadata.jsonl line 1 is not a JSON object with file_name and text",
    ),
    "caption-not-utf8": (
        {"a.png": png, "a.txt": lambda path: path.write_bytes(b"a \xff dog")},
        "a.txt is not UTF-8 text",
    ),
    "caption-a-pipe": (
        {"a.png": png, "a.txt": lambda path: os.mkfifo(path)},
        "a.txt cannot be read: a pipe, not a file",
    ),
    "caption-a-folder": (
        {"a.png": png, "a.txt": lambda path: path.mkdir()},
        "a.txt cannot be read: a folder, not a file",
    ),
    "caption-endless": (
        {"a.png": png, "a.txt": lambda path: path.symlink_to("/dev/zero")},
        "a.txt cannot be read: a device, not a file",
    ),
    "metadata-a-pipe": (
        {"a.png": png, "metadata.jsonl": lambda path: os.mkfifo(path)},
        "metadata.jsonl cannot be read: a pipe, not a file",
    ),
    "metadata-a-folder": (
        {"a.png": png, "metadata.jsonl": lambda path: path.mkdir()},
        "metadata.jsonl cannot be read: a folder, not a file",
    ),
    "metadata-endless": (
        {"a.png": png, "metadata.csv": lambda path: path.symlink_to("/dev/zero")},
        "metadata.csv cannot be read: a device, not a file",
    ),
}

# these are worth a word, no refusal: what `photos` says of them
LOOKED_AT = {
    "tiny": ({"a.png": png((20, 20))}, "a.png is 20 x 20 px and will be enlarged to 64 px"),
    "metadata-names-no-photo": (
        {"a.png": png, "metadata.jsonl": '{"file_name": "b.png", "text": "a dog"}\n'},
        "metadata.jsonl: 1 row names no picture here: b.png",
    ),
    "metadata-above": (
        {"a.png": png, "metadata.jsonl": '{"file_name": "../photos/0.png", "text": "a dog"}\n'},
        "metadata.jsonl: 1 row names no picture here: ../photos/0.png",
    ),
    "one-of-two-damaged": ({"a.png": png, "b.png": broken_png}, "b.png  left out: damaged or cut short"),
    "caption-of-nobody": ({"a.png": png, "b.txt": "a dog"}, "b.txt belongs to no picture"),
    "caption-empty": ({"a.png": png, "a.txt": " "}, "a.txt is empty: a.png gets the common prompt"),
    "control-characters-in-a-caption": ({"a.png": png, "a.txt": "a \x1b[2J dog"}, "a \u241b[2J dog"),
}
