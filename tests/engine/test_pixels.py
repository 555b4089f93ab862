"""Pixels are taken from Pillow's memory; they are those of a copy, whatever that memory looks like."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, picture

from clip_transforms.clip.preprocess import ImageError, Preprocessing, decode
from clip_transforms.engine.decode import pixels_of

# Prints the pixels of a picture whose rows Pillow pads.
PADDED = """
import sys
from pathlib import Path
from clip_transforms.clip.preprocess import Preprocessing, decode
from clip_transforms.engine.decode import pixels_of
data = Path(sys.argv[1]).read_bytes()
sys.stdout.buffer.write(decode(data, Preprocessing(9), pixels_of=pixels_of).pixels.tobytes())
"""


def copied(data, side):
    """The pixels as Pillow copies them; uint8 [3, r, r]."""
    return decode(data, Preprocessing(side)).pixels


@pytest.mark.parametrize("side", [9, 224])
def test_pixels_are_written_where_the_caller_wants_them(side):
    data, places = picture(0, (60, 40)), np.full((3, 3, side, side), 7, np.uint8)
    found = decode(data, Preprocessing(side), out=places[1], pixels_of=pixels_of)
    assert found.pixels.base is places and (found.width, found.height) == (60, 40)
    np.testing.assert_array_equal(places[1], copied(data, side))
    assert (places[[0, 2]] == 7).all()


def test_a_picture_that_cannot_be_decoded_leaves_its_place_alone():
    place = np.full((3, 9, 9), 7, np.uint8)
    with pytest.raises(ImageError):
        decode(picture(0, (60, 40))[:300], Preprocessing(9), out=place)
    assert (place == 7).all()


def test_a_picture_of_several_blocks_of_memory_is_whole():
    data = picture(0, (30, 20))
    side = 2100  # Pillow keeps more than 16 MiB in several blocks
    found = decode(data, Preprocessing(side), pixels_of=pixels_of)
    np.testing.assert_array_equal(found.pixels, copied(data, side))


def test_a_picture_whose_rows_are_padded_is_whole(tmp_path):
    data = picture(0, (60, 40))
    (tmp_path / "a.jpg").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PADDED, str(tmp_path / "a.jpg")],
        cwd=ROOT,
        env={**os.environ, "PILLOW_ALIGNMENT": "64"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == copied(data, 9).tobytes()
