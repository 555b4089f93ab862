"""EXIF orientation: ignored as published, or applied as a viewer does; either way it is known."""

import io
import struct

import numpy as np
import pytest
from conftest import ROOT, picture
from forked import run
from PIL import Image, ImageOps

from clip_transforms.clip.decoders import ImageError
from clip_transforms.clip.preprocess import Preprocessing, decode

SIDE = 32
ORIENTATION = 0x0112
FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}


def oriented(orientation, format_="JPEG", size=(60, 40), **options):
    """A picture that is not like any turn of itself."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    image = Image.open(io.BytesIO(picture(3, size, "PNG")))
    image.save(buffer, format_, exif=exif, **FORMATS.get(format_, {}), **options)
    return buffer.getvalue()


def plain(image):
    """The pixels of a picture that is stored as `image` shows it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return decode(buffer.getvalue(), Preprocessing(SIDE)).pixels


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_a_viewer_shows_it_before_the_resize(orientation, format_):
    data = oriented(orientation, format_)
    image = Image.open(io.BytesIO(data))
    ignored, applied = (decode(data, Preprocessing(SIDE, exif_orientation=how)) for how in ("ignore", "apply"))
    np.testing.assert_array_equal(ignored.pixels, decode(data, Preprocessing(SIDE)).pixels)
    np.testing.assert_array_equal(applied.pixels, plain(ImageOps.exif_transpose(image)))
    assert (ignored.orientation, applied.orientation) == (orientation, orientation)
    assert (applied.width, applied.height) == image.size == (60, 40), "the stored size"
    assert np.array_equal(ignored.pixels, applied.pixels) == (orientation == 1)


@pytest.mark.parametrize("resize", ["squash", "longest"])
def test_it_is_applied_before_every_way_to_resize(resize):
    data = oriented(6)
    turned = io.BytesIO()
    ImageOps.exif_transpose(Image.open(io.BytesIO(data))).save(turned, "PNG")
    found = decode(data, Preprocessing(SIDE, resize=resize, exif_orientation="apply")).pixels
    np.testing.assert_array_equal(found, decode(turned.getvalue(), Preprocessing(SIDE, resize=resize)).pixels)


def test_fast_decode_and_a_turn_agree():
    data = oriented(6, size=(640, 480))
    slow = decode(data, Preprocessing(SIDE, exif_orientation="apply")).pixels
    fast = decode(data, Preprocessing(SIDE, exif_orientation="apply", fast_decode=True)).pixels
    assert 0 < np.abs(slow.astype(int) - fast).mean() < 3


@pytest.mark.parametrize("how", ["ignore", "apply"])
def test_a_tiff_and_a_heic_are_turned_by_their_decoders_and_never_twice(how):
    tiff = oriented(6, "TIFF")
    heic = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.open(io.BytesIO(picture(3, (64, 40), "PNG"))).save(heic, "HEIF", exif=exif.tobytes(), quality=-1, chroma=444)
    for data, stored in ((tiff, (60, 40)), (heic.getvalue(), (64, 40))):
        found = decode(data, Preprocessing(SIDE, exif_orientation=how))
        assert found.orientation == 1 and (found.width, found.height) == stored[::-1]
        upright = Image.open(io.BytesIO(picture(3, stored, "PNG"))).transpose(Image.Transpose.ROTATE_270)
        assert np.abs(found.pixels.astype(int) - plain(upright)).max() <= 3


def with_exif(block):
    data = picture(3, (60, 40))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def tiff_block(entries):
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.parametrize("how", ["ignore", "apply"])
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09",
        *(tiff_block([struct.pack(">HHIHH", ORIENTATION, 3, 1, value, 0)]) for value in (0, 9, 999)),
        tiff_block([struct.pack(">HHI4s", ORIENTATION, 2, 4, b"top\0")]),
        tiff_block([struct.pack(">HHII", ORIENTATION, 3, 9999, 8)]),
    ],
    ids=["empty", "garbage", "beyond the end", "cut off", "0", "9", "999", "text", "many"],
)
def test_exif_that_makes_no_sense_turns_nothing_and_rejects_nothing(block, how):
    found = decode(with_exif(block), Preprocessing(SIDE, exif_orientation=how))
    np.testing.assert_array_equal(found.pixels, decode(picture(3, (60, 40)), Preprocessing(SIDE)).pixels)
    assert found.orientation == 1


def test_exif_behind_the_pixels_of_a_png_counts():
    png = oriented(6, "PNG")
    start = png.index(b"eXIf") - 4
    size = 12 + int.from_bytes(png[start : start + 4], "big")
    moved = png[:start] + png[start + size : -12] + png[start : start + size] + png[-12:]
    first, last = (decode(data, Preprocessing(SIDE, exif_orientation="apply")) for data in (png, moved))
    np.testing.assert_array_equal(first.pixels, last.pixels)
    assert last.orientation == 6


def test_a_turned_needle_is_refused_if_its_resize_needs_too_much_memory():
    usual, applied = (Preprocessing(SIDE, resize="squash", exif_orientation=how) for how in ("ignore", "apply"))
    for size, orientation, good, bad in (
        ((5000, 2), 6, usual, applied),
        ((2, 5000), 6, applied, usual),
        ((5000, 2), 3, applied, None),
        ((2, 5000), 1, None, applied),
    ):
        data = oriented(orientation, size=size)
        if good:
            decode(data, good, max_pixels=100_000)
        if bad:
            with pytest.raises(ImageError, match="32 × 5000 pixels resized in one direction, but") as caught:
                decode(data, bad, max_pixels=100_000)
            assert caught.value.reason == "too many pixels"


def test_the_description_names_it_and_that_of_before_stays():
    usual, applied = Preprocessing(SIDE), Preprocessing(SIDE, exif_orientation="apply")
    assert usual.describe() == (
        "shorter side to 32, centre crop, bicubic in Pillow, RGB, published mean and std; 77 tokens"
    )
    assert "EXIF orientation applied" in applied.describe()
    with pytest.raises(ValueError, match="its EXIF orientation is 'yes', but it must be ignore or apply"):
        Preprocessing(SIDE, exif_orientation="yes")


# Pictures of more than eight bits per channel


RAMP = np.tile(np.linspace(0, 65535, 64), (48, 1))
DEEP = {
    "gray, 16 bits, PNG": (RAMP.astype(np.uint16), "PNG", True),
    "gray, 16 bits, TIFF": (RAMP.astype(np.uint16), "TIFF", True),
    "gray, 32 bits": (RAMP.astype(np.int32), "TIFF", True),
    "floats": ((RAMP / 65535).astype(np.float32), "TIFF", True),
    "gray, 8 bits": ((RAMP / 257).astype(np.uint8), "PNG", False),
    "color, 8 bits": (np.stack([RAMP / 257] * 3, -1).astype(np.uint8), "TIFF", False),
}


@pytest.mark.parametrize("what", DEEP)
def test_a_picture_of_more_than_eight_bits_is_known(what):
    values, format_, is_deep = DEEP[what]
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format_)
    found = decode(buffer.getvalue(), Preprocessing(SIDE))
    assert found.is_deep == is_deep
    if is_deep:
        assert len(np.unique(found.pixels)) <= 2, "it is white or black, as published"


QUIET = """
import sys
from pathlib import Path
from clip_transforms.clip.preprocess import decode_image, orientation_of_start
data = Path(sys.argv[1]).read_bytes()
print(orientation_of_start(data), decode_image(data, 32).shape)
"""


@pytest.mark.parametrize("command", [["-c", QUIET], ["-m", "pipelines.inspect"]], ids=["decode", "inspect"])
@pytest.mark.parametrize("length", [20, 32], ids=["cut", "whole"])
def test_pillow_prints_no_warning_of_an_exif_that_is_cut_off(tmp_path, command, length):
    exif, path = Image.Exif(), tmp_path / "a.jpg"
    exif[ORIENTATION] = 6
    Image.open(io.BytesIO(picture(3))).save(path, exif=exif.tobytes()[:length])
    done = run(*command, path, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    if command[0] == "-c":
        assert done.stdout == f"{6 if length == 32 else 1} (3, 32, 32)\n"
