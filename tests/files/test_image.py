"""Pictures are opened by what their bytes are, and only of kinds that a photo can be."""

import os

import pytest
from PIL import Image, UnidentifiedImageError

from trainer.data.pictures import Unreadable, read
from trainer.files import image

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "TGA"])
def test_what_cameras_and_paint_programs_write_is_opened(tmp_path, kind):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png", kind)
    with image.opened(tmp_path / "a.png") as found:
        assert found.size == (8, 6)
    assert read(tmp_path / "a.png").size == (8, 6)


def test_postscript_under_a_photos_name_never_reaches_ghostscript(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **more: ran.append(words))
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(UnidentifiedImageError):
        image.opened(tmp_path / "a.jpg")
    with pytest.raises(Unreadable, match="not a picture"):
        read(tmp_path / "a.jpg")
    assert ran == []


@pytest.mark.skipif(os.name == "nt", reason="pipes have no names there")
def test_a_pipe_and_a_device_under_a_photos_name_are_left_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("/dev/zero")
    for name, kind in (("a.jpg", "a pipe"), ("b.jpg", "a device")):
        with pytest.raises(Unreadable, match=f"{kind}, not a file"):
            read(tmp_path / name)
