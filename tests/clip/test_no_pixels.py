"""Pictures that give no pixels: a reject with its reason, or a fault of the machine that is none."""

import errno
import io
import os
import struct
import subprocess
import sys
import warnings

import pyarrow as pa
import pytest
from conftest import ROOT, picture
from PIL import Image, ImageFile

from clip_transforms.clip.preprocess import ImageError, Preprocessing, decode, decode_image, resized_size

SIDE = 32
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
