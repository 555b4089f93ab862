"""Pixels are taken from Pillow's memory; they are those of a copy, whatever that memory looks like."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, picture
from test_preprocess import published_pixels

from clip_transforms.clip.preprocess import ImageError, Preprocessing, decode, decode_image

# Prints the pixels of a picture whose rows Pillow pads.
PADDED = """
import sys
from pathlib import Path
from clip_transforms.clip.preprocess import decode_image
sys.stdout.buffer.write(decode_image(Path(sys.argv[1]).read_bytes(), 9).tobytes())
"""


@pytest.mark.parametrize("side", [9, 224])
def test_pixels_are_written_where_the_caller_wants_them(side):
    data, places = picture(0, (60, 40)), np.full((3, 3, side, side), 7, np.uint8)
    found = decode(data, Preprocessing(side), out=places[1])
    assert found.pixels.base is places and (found.width, found.height) == (60, 40)
    np.testing.assert_array_equal(places[1], published_pixels(data, side))
    assert (places[[0, 2]] == 7).all()


def test_a_picture_that_cannot_be_decoded_leaves_its_place_alone():
    place = np.full((3, 9, 9), 7, np.uint8)
    with pytest.raises(ImageError):
        decode(picture(0, (60, 40))[:300], Preprocessing(9), out=place)
    assert (place == 7).all()


def test_a_picture_of_several_blocks_of_memory_is_whole():
    data = picture(0, (30, 20))
    side = 2100  # Pillow keeps more than 16 MiB in several blocks
    np.testing.assert_array_equal(decode_image(data, side), published_pixels(data, side))


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
    assert done.stdout == published_pixels(data, 9).tobytes()
