"""A plain JPEG, opened without Pillow's Python, gives the pixels, or the reject, that Pillow gives."""

import io
import random

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from clip_transforms.clip import preprocess
from clip_transforms.clip.plain_jpeg import plain_jpeg
from clip_transforms.clip.preprocess import ImageError, Preprocessing, decode

SIZES = [(32, 32), (64, 64), (70, 50), (33, 90), (1, 1), (1, 40), (16, 16)]
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "not subsampled": {"subsampling": 0, "quality": 95},
    "own Huffman codes": {"optimize": True, "quality": 30},
    "restart markers": {"restart_marker_blocks": 1},
    "comment": {"comment": b"a \xff\xda comment"},
}


def jpeg(size=(64, 64), mode="RGB", **options):
    image, buffer = Image.open(io.BytesIO(picture(3, size, "PNG"))), io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def outcome(data, preprocessing):
    try:
        found = decode(data, preprocessing)
    except ImageError as error:
        return error.reason, str(error)
    return found.pixels.tobytes(), *found[1:]


def by_pillow(data, preprocessing, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(preprocess, "plain_jpeg", lambda _: None)
        return outcome(data, preprocessing)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_plain_jpeg_has_the_pixels_that_pillow_gives(options, mode, resize, monkeypatch):
    preprocessing = Preprocessing(32, resize=resize)
    for size in SIZES:
        data = jpeg(size, mode, **options)
        image = plain_jpeg(data)
        assert (image.mode, image.size) == (mode, size)
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data))))
        assert outcome(data, preprocessing) == by_pillow(data, preprocessing, monkeypatch)


def test_bytes_in_other_containers_give_the_same_pixels():
    data = jpeg()
    for held in (bytearray(data), memoryview(data)):
        assert outcome(held, Preprocessing(32)) == outcome(data, Preprocessing(32))


def with_header(marker, content):
    """A JPEG with one more header, right after its first two bytes."""
    data = jpeg()
    return data[:2] + marker + (len(content) + 2).to_bytes(2, "big") + content + data[2:]


EXIF = Image.Exif()
EXIF[0x0112] = 6
OTHERS = {
    "four colours": jpeg(mode="CMYK"),
    "Exif": jpeg(exif=EXIF),
    "colour profile": jpeg(icc_profile=b"profile" * 9),
    "MPF": with_header(b"\xff\xe2", b"MPF\0" + bytes(20)),
    "Adobe": with_header(b"\xff\xee", b"Adobe" + bytes(7)),
    "short JFIF": with_header(b"\xff\xe0", b"JFIF\0"),
    "fill byte": jpeg()[:2] + b"\xff" + jpeg()[2:],
    "table of 16 bits": with_header(b"\xff\xdb", b"\x10" + bytes([1]) * 128),
    "short table of 16 bits": with_header(b"\xff\xdb", b"\x10" + bytes([1]) * 64),
    "short table": with_header(b"\xff\xdb", bytes(64)),
    "a header that is too short": with_header(b"\xff\xfe", b"")[:4] + b"\0\1" + jpeg()[2:],
    "two frames": with_header(b"\xff\xc0", b"\x08\0\x40\0\x40\3\1\x22\0\2\x11\1\3\x11\1"),
    "12 bits": jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "no height": jpeg().replace(b"\xff\xc0\0\x11\x08\0\x40", b"\xff\xc0\0\x11\x08\0\0"),
    "arithmetic codes": jpeg().replace(b"\xff\xc0", b"\xff\xc9"),
    "large file": jpeg() + bytes(1 << 16),
    "many pixels": jpeg((2048, 2049), "L", quality=5),
    "PNG": picture(3, format_="PNG"),
    "nothing": b"",
    "two bytes": b"\xff\xd8",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_any_other_picture_is_left_to_pillow(data, monkeypatch):
    assert plain_jpeg(data) is None
    assert outcome(data, Preprocessing(32)) == by_pillow(data, Preprocessing(32), monkeypatch)


def test_a_jpeg_at_the_limits_is_plain():
    data = jpeg()
    assert plain_jpeg(data + bytes((1 << 16) - len(data))).size == (64, 64)
    assert plain_jpeg(jpeg((2048, 2048), "L", quality=5)).size == (2048, 2048)


def test_cut_and_damaged_pictures_are_rejected_as_by_pillow(monkeypatch):
    """Every kind is cut at each 7th byte, and a byte of it is changed; headers come more often than pixels."""
    rng, preprocessing, plain, reasons = random.Random(5), Preprocessing(8), 0, set()
    for options in KINDS.values():
        data = jpeg((24, 17), **options)
        damaged = [data[:stop] for stop in range(0, len(data), 7)]
        for _ in range(150):
            place = rng.randrange(rng.choice((len(data), 200)))
            damaged.append(data[:place] + bytes([rng.choice((0, 1, 255, rng.randrange(256)))]) + data[place + 1 :])
        for each in damaged:
            plain += plain_jpeg(each) is not None
            found = outcome(each, preprocessing)
            assert found == by_pillow(each, preprocessing, monkeypatch)
            reasons.add(found[0] if isinstance(found[0], str) else "pixels")
    assert plain > 500 and {"pixels", "truncated", "damaged"} <= reasons


def test_another_pillow_opens_plain_jpegs_itself(monkeypatch):
    data, made, calls = jpeg(), Image.core.jpeg_decoder, []
    expected = outcome(data, Preprocessing(32))

    def changed(*args):
        calls.append(args)
        if len(calls) == 1:  # that of `plain_jpeg`, which knows no other arguments
            raise TypeError("it takes more arguments")
        return made(*args)

    monkeypatch.setattr(Image.core, "jpeg_decoder", changed)
    assert outcome(data, Preprocessing(32)) == expected
    assert len(calls) == 2
