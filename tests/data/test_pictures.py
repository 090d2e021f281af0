"""One picture file becomes upright 8-bit RGB, whatever wrote it."""

import hashlib
import struct
from importlib.util import find_spec

import numpy as np
import pytest
from photos import noise_picture
from PIL import Image, ImageCms

from trainer.data.pictures import Unreadable, read
from trainer.machine import libraries


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


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevc"])
def test_heic_is_known_by_its_bytes_under_any_name(tmp_path, brand):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 100)
    with pytest.raises(Unreadable, match="pip install pillow-heif"):
        read(tmp_path / "a.jpg")


def test_heic_with_a_broken_package_says_what_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "_hidden", {"pillow_heif": "libheif.so.1 is not there"})
    libraries.loads.cache_clear()
    (tmp_path / "a.heic").write_bytes(b"\0" * 100)
    with pytest.raises(Unreadable, match=r"pillow-heif, which does not load .libheif.so.1 is not there.; convert it"):
        read(tmp_path / "a.heic")
    libraries.loads.cache_clear()


def test_the_digest_follows_the_bytes(tmp_path):
    noise_picture((20, 20), 1).save(tmp_path / "a.png")
    noise_picture((20, 20), 2).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    digests = [read(tmp_path / name).digest for name in ("a.png", "b.png", "c.png")]
    assert digests[0] == digests[2] != digests[1]


DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03134, 0.00009, 0.82491))


def profile(columns, gamma):
    """An ICC profile of an RGB space: XYZ (D50) of red, green and blue, and the exponent of its tone curve."""

    def fixed(value):
        return struct.pack(">i", round(value * 65536))

    white = (0.9642, 1.0, 0.8249)
    xyz = {
        name: b"XYZ \0\0\0\0" + b"".join(map(fixed, of))
        for name, of in zip(("rXYZ", "gXYZ", "bXYZ"), columns, strict=True)
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = (
        xyz | {"wtpt": b"XYZ \0\0\0\0" + b"".join(map(fixed, white))} | dict.fromkeys(("rTRC", "gTRC", "bTRC"), curve)
    )
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name.encode() + struct.pack(">II", start + len(body), len(value))
        body += value
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, white))
    return head.ljust(128, b"\0") + table + body


def in_srgb(levels, columns, gamma):
    """What a colour of another space is in sRGB, by the book."""
    xyz = np.array(columns).T @ (np.array(levels) / 255) ** gamma
    linear = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]) @ xyz
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize("columns, gamma", [(DISPLAY_P3, 2.2), (PROPHOTO, 1.8)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_colours_of_another_space_come_out_as_srgb(tmp_path, columns, gamma, suffix):
    levels = (150, 120, 100)
    picture = Image.new("RGB", (32, 16), levels)
    picture.save(tmp_path / f"a{suffix}", icc_profile=profile(columns, gamma), quality=98)
    found, expected = read(tmp_path / f"a{suffix}").rgb.getpixel((16, 8)), in_srgb(levels, columns, gamma)
    assert np.abs(expected - levels).max() > 5 and np.abs(np.array(found) - expected).max() <= 3


def test_a_profile_that_says_srgb_or_says_nothing_changes_no_bit(tmp_path):
    picture = noise_picture((40, 30))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc in (("a", srgb), ("b", None), ("c", b"no profile at all")):
        picture.save(tmp_path / f"{name}.png", icc_profile=icc)
        path = tmp_path / f"{name}.png"
        assert np.array_equal(np.asarray(read(path).rgb), np.asarray(picture))
        assert read(path).digest == hashlib.sha256(path.read_bytes()).hexdigest(), "what was cached of it stays"


def test_a_converted_picture_has_another_digest_than_its_bytes(tmp_path):
    """What was cached of it before its profile was read must not be taken."""
    noise_picture((40, 30)).save(tmp_path / "a.png", icc_profile=profile(PROPHOTO, 1.8))
    assert read(tmp_path / "a.png").digest != hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    noise_picture((40, 30)).save(tmp_path / "b.png")
    assert read(tmp_path / "b.png").digest == hashlib.sha256((tmp_path / "b.png").read_bytes()).hexdigest()


def test_transparency_palettes_and_rotation_live_through_a_profile(tmp_path):
    picture = noise_picture((40, 30)).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((40, 30)))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", icc_profile=profile(PROPHOTO, 1.8), exif=exif)
    found = read(tmp_path / "a.png")
    assert (
        found.size == (30, 40)
        and found.alpha.size == (30, 40)
        and found.alpha.getextrema() == picture.getchannel("A").getextrema()
    )
    picture.convert("RGB").quantize(16).save(tmp_path / "b.png", icc_profile=profile(PROPHOTO, 1.8))
    picture.convert("L").save(tmp_path / "c.png", icc_profile=profile(PROPHOTO, 1.8))  # a profile of another kind
    assert read(tmp_path / "b.png").rgb.mode == read(tmp_path / "c.png").rgb.mode == "RGB"
