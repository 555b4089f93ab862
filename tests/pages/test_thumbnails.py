"""Small pictures: cropped, limited in bytes, and never more than the dataset's own limits allow."""

import io

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from clip_transforms.pages import choosing, projection
from clip_transforms.pages.thumbnails import SIDE, SMALL, sheet, thumbnail

PIXELS = 1 << 24


def noise(side=600):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("side", [SIDE, SMALL])
@pytest.mark.parametrize("data", [picture(0), picture(1, (500, 90), "PNG"), noise()], ids=["small", "wide", "noise"])
def test_a_small_picture_is_a_square(data, side):
    made, lost = thumbnail(data, side, PIXELS, "ignore")
    assert Image.open(io.BytesIO(made)).size == (side, side) and not lost


def test_what_the_dataset_would_refuse_is_not_decoded():
    assert thumbnail(picture(0), SIDE, 1_000, "ignore") == (None, "too many pixels")
    assert thumbnail(b"no picture", SIDE, PIXELS, "ignore") == (None, "unknown format")


def test_a_page_full_of_pictures_stays_below_five_megabytes():
    """Noise is what compresses worst."""
    big, _ = thumbnail(noise(), SIDE, PIXELS, "ignore")
    small, _ = thumbnail(noise(), SMALL, PIXELS, "ignore")
    on_sheets = choosing.MOST_CLASSES * 2 * 5 + 2 * 12 + 6 * 6
    whole = sheet([small] * projection.PICTURES, 20)
    assert 4 / 3 * (on_sheets * len(big) + len(whole)) + 300_000 < 5e6


def test_a_sheet_holds_the_pictures_row_by_row():
    pictures = [thumbnail(picture(i), SMALL, PIXELS, "ignore")[0] for i in range(3)]
    image = Image.open(io.BytesIO(sheet(pictures, 2)))
    assert image.size == (2 * SMALL, 2 * SMALL)
    for place, data in enumerate(pictures):
        left, top = place % 2 * SMALL, place // 2 * SMALL
        piece = np.asarray(image.crop((left, top, left + SMALL, top + SMALL)), np.float32)
        assert np.abs(piece - np.asarray(Image.open(io.BytesIO(data)), np.float32)).mean() < 8
