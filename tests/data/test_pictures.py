"""One picture file becomes upright 8-bit RGB, whatever wrote it."""

from importlib.util import find_spec

import numpy as np
import pytest
from photos import noise_picture
from PIL import Image

from trainer.data.pictures import Unreadable, read


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (60, 40), "black")
    picture.paste("white", (0, 0, 30, 40))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = read(tmp_path / "a.jpg").rgb
    assert upright.size == (40, 60)
    assert upright.getpixel((20, 5))[0] > 200 and upright.getpixel((20, 55))[0] < 50  # left became top


def test_transparency_is_laid_on_white_and_its_alpha_kept(tmp_path):
    picture = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (10, 0, 20, 10))
    picture.save(tmp_path / "a.png")
    found = read(tmp_path / "a.png")
    assert found.rgb.getpixel((2, 5)) == (255, 0, 0) and found.rgb.getpixel((15, 5)) == (255, 255, 255)
    assert found.alpha.getpixel((2, 5)) == 255 and found.alpha.getpixel((15, 5)) == 0


def test_an_opaque_alpha_channel_is_no_mask(tmp_path):
    noise_picture((20, 10)).convert("RGBA").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").alpha is None


@pytest.mark.parametrize("mode", ["L", "P", "LA", "CMYK", "1", "RGB"])
def test_every_common_mode_becomes_rgb(tmp_path, mode):
    suffix = ".tif" if mode in ("CMYK", "LA") else ".png"
    noise_picture((30, 20)).convert(mode).save(tmp_path / f"a{suffix}")
    found = read(tmp_path / f"a{suffix}").rgb
    assert found.mode == "RGB" and found.size == (30, 20)


def test_a_palette_with_a_transparent_colour_is_laid_on_white(tmp_path):
    picture = Image.new("P", (10, 10), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.paste(1, (0, 0, 5, 10))
    picture.save(tmp_path / "a.png", transparency=0)
    found = read(tmp_path / "a.png").rgb
    assert found.getpixel((8, 5)) == (255, 255, 255) and found.getpixel((2, 5)) == (200, 100, 50)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    grey = np.asarray(read(tmp_path / "a.png").rgb)[0, :, 0].astype(int)
    assert np.abs(grey - np.linspace(0, 255, 64)).max() <= 1


def test_float_tiff_in_unit_range_is_scaled(tmp_path):
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(4, 0)).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif").rgb.getpixel((15, 0)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame(tmp_path):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    assert read(tmp_path / "a.webp").rgb.getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
def test_a_file_that_was_cut_short_is_refused_with_a_reason(tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    noise_picture((120, 90)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(Unreadable) as error:
        read(path)
    assert ("empty" in str(error.value)) == (kept == 0)


def test_text_called_jpg_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(Unreadable, match="not a picture"):
        read(tmp_path / "a.jpg")


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="pillow-heif is installed")
def test_heic_without_its_package_names_the_package(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0" * 100)
    with pytest.raises(Unreadable, match="pip install pillow-heif"):
        read(tmp_path / "a.heic")


def test_the_digest_follows_the_bytes(tmp_path):
    noise_picture((20, 20), 1).save(tmp_path / "a.png")
    noise_picture((20, 20), 2).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    digests = [read(tmp_path / name).digest for name in ("a.png", "b.png", "c.png")]
    assert digests[0] == digests[2] != digests[1]
