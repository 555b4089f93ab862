"""Pixels compared with the published steps, written out in Pillow calls, for every mode that Pillow has."""

import errno
import io
import math
import os
import struct
import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, picture
from PIL import Image, ImageFile

from clip_transforms.clip.preprocess import ImageError, Preprocessing, decode, decode_image, resized_size

SIDE = 32
# mode → a format that preserves it
MODES = {
    "1": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "P": "PNG",
    "RGB": "PNG",
    "RGBA": "PNG",
    "I;16": "PNG",
    "P, transparent": "PNG",
    "I;16B": "TIFF",
    "RGBX": "TIFF",
    "CMYK": "TIFF",
    "LAB": "TIFF",
    "I": "TIFF",
    "F": "TIFF",
    "YCbCr": "JPEG",
}
# Forty sizes: near the side, with odd and even margins to crop, needles, and one large picture.
SIZES = [
    *((SIDE, SIDE), (SIDE + 1, SIDE + 1), (SIDE - 1, SIDE - 1), (SIDE, SIDE + 1), (SIDE + 1, SIDE), (SIDE - 1, SIDE)),
    *((SIDE, SIDE - 1), (SIDE - 1, SIDE + 1), (SIDE + 1, SIDE - 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3)),
    *((1, 300), (300, 1), (2, 301), (301, 2), (7, 100), (100, 7), (31, 62), (62, 31), (32, 35), (35, 32)),
    *((32, 37), (37, 32), (32, 57), (57, 32), (33, 67), (67, 33), (40, 30), (30, 40), (64, 64), (65, 63)),
    *((101, 67), (67, 101), (128, 96), (96, 129), (257, 255), (640, 480)),
]


def encoded(mode, size):
    rng = np.random.default_rng(sum(map(ord, mode)))
    w, h = size
    values = rng.integers(0, 256, (h, w, 3), np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image = image.quantize(17)
    elif mode == "P, transparent":
        image = image.quantize(17)
    elif mode.startswith("I;16"):
        image = Image.frombytes(mode, size, rng.integers(0, 1 << 16, (h, w)).astype(np.uint16).tobytes())
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, values.tobytes())
    elif mode != "RGB":
        image = image.convert(mode)
    buffer = io.BytesIO()
    options = {"quality": 95} if MODES[mode] == "JPEG" else {"transparency": 3} if "transparent" in mode else {}
    image.save(buffer, MODES[mode], **options)
    return buffer.getvalue()


def published_pixels(data, side):
    """Resize, crop and convert as torchvision and the published code do, in Pillow calls."""
    image = Image.open(io.BytesIO(data))
    w, h = image.size
    short, long = min(w, h), max(w, h)
    new_long = int(side * long / short)
    new = (side, new_long) if w <= h else (new_long, side)
    if (w, h) != new:
        image = image.resize(new, Image.BICUBIC)
    top, left = int(round((new[1] - side) / 2.0)), int(round((new[0] - side) / 2.0))
    image = image.crop((left, top, left + side, top + side)).convert("RGB")
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_the_published_steps_and_a_reject_if_those_raise(mode, size):
    data = encoded(mode, size)
    try:
        expected = published_pixels(data, SIDE)
    except (OSError, ValueError):
        with pytest.raises(ImageError):
            decode_image(data, SIDE)
        return
    pixels = decode_image(data, SIDE)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, SIDE, SIDE)
    np.testing.assert_array_equal(pixels, expected)


def test_there_are_forty_shapes():
    assert len(set(SIZES)) == 40


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr"])
def test_pixels_are_those_of_transformers_in_the_cases_where_both_agree_by_design(mode):
    """Both resize and crop alike if the crop's margin is even. Transformers converts to RGB first, which gives other
    pixels for palettes and for images with more than eight bits per channel."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_rescale=False, do_normalize=False
    )
    compared = 0
    for size in SIZES:
        if any((length - SIDE) % 2 for length in resized_size(*size, Preprocessing(SIDE))):
            continue
        image = Image.open(io.BytesIO(encoded(mode, size)))
        theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(decode_image(encoded(mode, size), SIDE), theirs, err_msg=str(size))
        compared += 1
    assert compared > 15


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (32, 32), (100, 7), (20, 10)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_other_resize_modes_are_those_of_open_clip(mode, interpolation, size):
    data, resample = encoded(mode, size), getattr(Image.Resampling, interpolation.upper())
    image = Image.open(io.BytesIO(data))
    squashed = np.asarray(image.resize((SIDE, SIDE), resample).convert("RGB")).transpose(2, 0, 1)
    found = decode(data, Preprocessing(SIDE, resize="squash", interpolation=interpolation)).pixels
    np.testing.assert_array_equal(found, squashed)
    ratio = max(size) / SIDE
    whole = image.resize(tuple(round(length / ratio) for length in size), resample)
    found = decode(data, Preprocessing(SIDE, resize="longest", interpolation=interpolation)).pixels
    left, top = ((SIDE - length) // 2 for length in whole.size)
    inner = found[:, top : top + whole.height, left : left + whole.width]
    np.testing.assert_array_equal(inner, np.asarray(whole.convert("RGB")).transpose(2, 0, 1))
    assert found.shape == (3, SIDE, SIDE)
    if mode in ("RGB", "L"):
        assert found.astype(int).sum() == inner.astype(int).sum(), "the padding is black"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"resize": "stretch"}, {"interpolation": "magic"}, {"mean": (0.5, 0.5)}, {"mean": (math.nan, 0, 0)}),
        *({"std": std} for std in ((1, 0, 1), (1, -1, 1), (1, math.inf, 1), (True, 1, 1))),
        *({"fill": fill} for fill in ("red", -1, 256, 1.5, [0, 0, 0])),
    ],
    ids=str,
)
def test_an_impossible_preprocessing_is_refused(wrong):
    with pytest.raises(ValueError, match="its .* but it must be"):
        Preprocessing(SIDE, **wrong)


def test_a_palette_with_transparency_is_resized_before_it_is_converted():
    image = Image.new("P", (50, 40))
    image.putpalette([i for i in range(256) for _ in range(3)])
    image.putdata(list(np.random.default_rng(0).integers(0, 256, 2000)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=3)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), SIDE), published_pixels(buffer.getvalue(), SIDE))
    converted_first = image.convert("RGB").resize((40, 32), Image.BICUBIC)
    assert np.asarray(converted_first.crop((4, 0, 36, 32))).transpose(2, 0, 1).tolist() != (
        decode_image(buffer.getvalue(), SIDE).tolist()
    )


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_recognised_by_its_bytes(format_):
    found = decode(picture(1, (40, 30), format_), Preprocessing(SIDE))
    assert (found.width, found.height) == (40, 30)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(buffer.getvalue(), SIDE)[:, 5, 5].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored_as_published():
    image, exif = Image.open(io.BytesIO(picture(3))), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=90)
    found = decode(buffer.getvalue(), Preprocessing(SIDE))
    assert (found.width, found.height) == (40, 30)


GOOD = picture(0, (200, 150))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"not an image", "unknown format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unknown format"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (GOOD[:15], "truncated"),
    ],
    ids=["empty", "text", "svg", "postscript", "half a jpeg", "fifteen bytes"],
)
def test_a_picture_that_cannot_be_decoded_has_a_reason(data, reason):
    with pytest.raises(ImageError) as caught:
        decode_image(data, SIDE)
    assert caught.value.reason == reason


def test_too_many_pixels_is_known_before_anything_is_decoded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="200 × 150 pixels stored") as caught:
            decode(GOOD, Preprocessing(SIDE), max_pixels=29_999)
        assert caught.value.reason == "too many pixels"
        decode(GOOD, Preprocessing(SIDE), max_pixels=30_000)


def test_a_needle_is_refused_if_resizing_would_make_it_too_large():
    with pytest.raises(ImageError, match="resized"):
        decode_image(picture(0, (1, 5000), "PNG"), 224)
    assert resized_size(1, 5000, Preprocessing(224)) == (224, 1_120_000)


def smooth(size, format_):
    """A picture without detail that decoding at a smaller size could lose, so that only the filters differ."""
    return picture(5, size, format_)


@pytest.mark.parametrize(
    "size, decoded_at",
    [((640, 480), (80, 60)), ((100, 700), (50, 350)), ((63, 64), (63, 64)), ((32, 400), (32, 400))],
)
def test_fast_decode_decodes_a_jpeg_no_larger_than_it_must(size, decoded_at, monkeypatch):
    data = smooth(size, "JPEG")
    sizes, original = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, *args: sizes.append(image.size) or original(image, *args))
    slow, found = decode(data, Preprocessing(SIDE)), decode(data, Preprocessing(SIDE, fast_decode=True))
    assert sizes == ([size, decoded_at] if min(size) > SIDE else [])
    assert (found.width, found.height) == size, "the stored size is reported, not the decoded one"
    difference = np.abs(slow.pixels.astype(int) - found.pixels)
    assert difference.mean() < 3
    assert difference.any() == (decoded_at != size), "pixels stay the same if no smaller size is possible"


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "GIF"])
def test_fast_decode_changes_no_other_format(format_):
    data = smooth((640, 480), format_)
    usual, fast = decode(data, Preprocessing(SIDE)), decode(data, Preprocessing(SIDE, fast_decode=True))
    np.testing.assert_array_equal(usual.pixels, fast.pixels)


def test_fast_decode_keeps_the_limits_and_is_named():
    fast = Preprocessing(SIDE, fast_decode=True)
    with pytest.raises(ImageError, match="640 × 480 pixels stored"):
        decode(smooth((640, 480), "JPEG"), fast, max_pixels=300_000)
    assert fast.describe() != Preprocessing(SIDE).describe() and "reduced size" in fast.describe()


# Faults of the machine


MACHINE_FAULTS = [
    MemoryError(),
    pa.lib.ArrowMemoryError("malloc of size 64 failed"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    RuntimeError("can't start new thread"),
    ImportError("cannot open shared object file: Too many open files"),
    OSError("decoder error -9"),  # one of Pillow's codecs got no memory
]


STEPS = {
    "open": (Image, "open", picture(0, (200, 150), "PNG")),
    "load": (ImageFile.ImageFile, "load", picture(0, (200, 150), "PNG")),
    "plain": (Image.core, "jpeg_decoder", GOOD),  # a plain JPEG is decoded without the other two
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", MACHINE_FAULTS, ids=repr)
def test_a_fault_of_the_machine_while_a_picture_is_decoded_is_no_reject(step, fault, monkeypatch):
    def failing(*args, **kwargs):
        raise fault

    *place, data = STEPS[step]
    monkeypatch.setattr(*place, failing)
    with pytest.raises(type(fault)) as caught:
        decode_image(data, SIDE)
    assert caught.value is fault


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "damage", [OSError("broken data stream"), ValueError("bad"), SyntaxError("bad"), RuntimeError("bad")], ids=repr
)
def test_an_error_of_the_picture_itself_stays_a_reject(step, damage, monkeypatch):
    def failing(*args, **kwargs):
        raise damage

    *place, data = STEPS[step]
    monkeypatch.setattr(*place, failing)
    with pytest.raises(ImageError, match="bad|broken") as caught:
        decode_image(data, SIDE)
    assert caught.value.reason == "damaged"


# Runs in a process of its own and prints one line per picture.
STARVED = """
import os, resource, sys
from pathlib import Path
from clip_transforms.clip.preprocess import ImageError, decode_image

def starve(what):
    if what == "memory":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20),) * 2)
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1,) * 2)

pictures = [Path(path).read_bytes() for path in sys.argv[2:]]
starve(sys.argv[1])
for data in pictures:
    try:
        decode_image(data, 32)
    except ImageError as error:
        print("reject:", error)
    except (MemoryError, OSError) as error:
        print("machine:", type(error).__name__)
    else:
        print("decoded")
"""


def starved(what, *paths):
    argv = [sys.executable, "-c", STARVED, what, *map(str, paths)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_a_good_picture_is_not_rejected_where_memory_is_short(tmp_path):
    (tmp_path / "large.png").write_bytes(picture(0, (4000, 3000), "PNG"))
    (tmp_path / "broken.jpg").write_bytes(GOOD[:15])
    large, broken = starved("memory", tmp_path / "large.png", tmp_path / "broken.jpg")
    assert large == "machine: MemoryError" and broken.startswith("reject: ")


def test_a_process_without_a_free_descriptor_decodes_every_format(tmp_path):
    """Pillow would import a decoder at the first picture that needs it, and silently go without if that fails."""
    formats = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
    for format_ in formats:
        (tmp_path / format_).write_bytes(picture(0, (60, 40), format_))
    assert starved("descriptors", *(tmp_path / format_ for format_ in formats)) == ["decoded"] * len(formats)


# Pictures that ask for more memory than their pixels


def tiff(width, height, tile_width, tile_length):
    """A compressed TIFF of 400 bytes with one tile."""
    tags = [(256, width), (257, height), (258, 8), (259, 5), (262, 1), (277, 1)]
    tags += [(322, tile_width), (323, tile_length), (324, 200), (325, 200)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)).ljust(400, b"\0")


@pytest.mark.parametrize("tile", [(1 << 16, 1 << 16), (40_000, 40_000)], ids=str)
def test_a_tile_that_is_far_larger_than_its_picture_is_refused_unread(tile):
    with pytest.raises(ImageError, match=f"{tile[0]} × {tile[1]} pixels in a tile") as caught:
        decode_image(tiff(32, 32, *tile), SIDE)
    assert caught.value.reason == "too many pixels"


@pytest.mark.parametrize(
    "size, message",
    [
        pytest.param((80_000_000, 1), "a side of 80000000 pixels", marks=pytest.mark.slow),  # four seconds
        ((1, 8_000_000), "224 × 8000000 pixels resized in one direction"),
    ],
    ids=str,
)
def test_a_needle_is_refused_where_both_its_sides_are_resized_to_one(size, message):
    """The one makes Pillow's counts overflow; the other needs gigabytes between Pillow's two passes."""
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "TIFF", compression="group4")
    with pytest.raises(ImageError, match=message) as caught:
        decode(buffer.getvalue(), Preprocessing(224, resize="squash"))
    assert caught.value.reason == "too many pixels"
