"""Pixels compared with the published steps, written out in Pillow calls, for every mode that Pillow has."""

import io
import math

import numpy as np
import pytest
from conftest import picture
from PIL import Image

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
