"""The reason of a picture that cannot be decoded is true: what it is, whether it ends early, or that it is damaged."""

import io
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT, picture
from PIL import Image

from clip_transforms.clip.decoders import FORMATS, ImageError
from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.clip.preprocess import Preprocessing, decode, decode_image

SIDE = 32


def encoded(format_, **options):
    """A picture of noise, so that its data has no end that a decoder could do without."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)).save(buffer, format_, **options)
    return buffer.getvalue()


def reject(data):
    with pytest.raises(ImageError) as caught:
        decode_image(data, SIDE)
    return caught.value


KINDS = {
    "JPEG": lambda: encoded("JPEG"),
    "JPEG, progressive": lambda: encoded("JPEG", progressive=True),
    "PNG": lambda: encoded("PNG"),
    "WebP": lambda: encoded("WEBP"),
    "WebP, lossless": lambda: encoded("WEBP", lossless=True),
    "GIF": lambda: encoded("GIF"),
    "BMP": lambda: encoded("BMP"),
    "TIFF": lambda: encoded("TIFF"),
    "TIFF, LZW": lambda: encoded("TIFF", compression="tiff_lzw"),
    "TIFF, JPEG": lambda: encoded("TIFF", compression="jpeg"),
    "AVIF": lambda: encoded("AVIF"),
    "HEIC": lambda: encoded("HEIF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_cut_off_anywhere_is_truncated(kind):
    data = KINDS[kind]()
    decode_image(data, SIDE)
    least = 7 if kind in ("AVIF", "HEIC", "BMP") else 3  # fewer bytes say nothing of the format
    ends = 24 if kind == "PNG" else 8 if kind == "GIF" else 0  # marks of the end, which decoders do without
    sizes = [*range(least, 120), *range(120, len(data) - ends, 61), len(data) - ends - 1]
    found = {size: reject(data[:size]) for size in sizes}
    assert {size: str(error) for size, error in found.items() if error.reason != "truncated"} == {}


def chunk(kind, data, crc=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc or zlib.crc32(kind + data))


def with_chunk(new):
    """A PNG with one more chunk in front of its pixels."""
    png = picture(2, (40, 30), "PNG")
    return png[:33] + new + png[33:]


TWO_MEBIBYTES = bytes(range(32, 96)) * (2 << 14)
SIDE_INFORMATION = {
    "a compressed text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TWO_MEBIBYTES)),
    "an international text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TWO_MEBIBYTES)),
    "a plain text": chunk(b"tEXt", b"workflow\0" + TWO_MEBIBYTES),
    "a colour profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(TWO_MEBIBYTES)),
    "several texts": chunk(b"zTXt", b"a\0\0" + zlib.compress(TWO_MEBIBYTES)) * 9,
}


@pytest.mark.parametrize("what", SIDE_INFORMATION)
def test_large_side_information_in_a_png_changes_no_pixel(what):
    np.testing.assert_array_equal(
        decode_image(with_chunk(SIDE_INFORMATION[what]), SIDE), decode_image(with_chunk(b""), SIDE)
    )


def test_side_information_stays_limited():
    error = reject(with_chunk(chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(65 << 20)))))
    assert error.reason == "damaged" and "too large" in str(error)


@pytest.mark.parametrize(
    "data, words",
    [
        (with_chunk(chunk(b"tEXt", b"Title\0hello", crc=1)), "bad header checksum in b'tEXt'"),
        (with_chunk(chunk(b"tIME", b"\x07\xe8\1\1\1\1\1", crc=1)), "bad header checksum in b'tIME'"),
        (with_chunk(chunk(b"pHYs", b"\0\0\1")), "Truncated pHYs chunk"),
        (picture(1, (40, 30), "PNG").replace(b"\r\n", b"\n"), "not a PNG file"),
        (b"RIFF\x48\0\0\0WEBPXXXX" + bytes(64), "not a WEBP file|could not create decoder"),
        (b"GIF89a" + b"\xff" * 40, "."),
        (b"II*\0" + b"\xff" * 4 + bytes(60), "."),
        (b"BM" + bytes(4) + bytes(4) + b"\x36\0\0\0" + b"\x3b\0\0\0" + bytes(90), "Unsupported BMP header type"),
    ],
    ids=["text", "time", "short chunk", "sent as text", "webp", "gif", "tiff", "bmp"],
)
def test_a_picture_whose_magic_number_is_known_is_damaged_or_truncated_in_the_decoders_words(data, words):
    error = reject(data)
    assert error.reason in ("damaged", "truncated")
    assert error.reason == "damaged" or data[:2] in (b"II", b"GI"), str(error)
    assert re.search(words, str(error)) and "cannot identify" not in str(error)


def other(format_, mode="RGB"):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(1, (40, 30), "PNG"))).convert(mode).save(buffer, format_)
    return buffer.getvalue()


FTYP = b"\0\0\0\x18ftyp"
OTHERS = {
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "SVG ": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<!DOCTYPE svg>\n<svg/>",
    "XML text": b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
    "HTML page": b"\n<!DOCTYPE html><html>404</html>",
    "HTML page ": b"<HTML><body/></HTML>",
    "JPEG 2000": other("JPEG2000"),
    "JPEG 2000 ": b"\xff\x4f\xff\x51" + bytes(40),
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "JPEG XL ": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
    "ICO (icon)": other("ICO"),
    "PPM (Netpbm)": other("PPM"),
    "PPM (Netpbm) ": other("PPM", "L"),
    "PSD (Photoshop)": b"8BPS\0\1" + bytes(50),
    "DDS": other("DDS"),
    "ICNS (icon)": other("ICNS"),
    "PostScript": other("EPS"),
    "PDF": other("PDF"),
    "DICOM": bytes(128) + b"DICM" + bytes(20),
    "video": FTYP + b"isom\0\0\2\0isomiso2" + bytes(40),
    "video ": b"\x1aE\xdf\xa3" + bytes(40),
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "ZIP archive": b"PK\x03\x04" + bytes(40),
    "Git LFS pointer, whose file was never fetched": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "picture that a program turned into UTF-8 text": picture(1).decode("utf-8", "replace").encode(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_named_and_its_bytes_are_not_shown(name):
    error = reject(OTHERS[name])
    assert error.reason == "unknown format"
    assert str(error) == f"{name.strip()}, none of {', '.join(FORMATS)}"


@pytest.mark.parametrize(
    "data", [b"hello world", b"BMW is a car", b"P8 text", bytes(50), b"\xff\xd9", b"RIFF\0\0\0\0WAVEfmt "]
)
def test_bytes_of_no_known_format_are_shown(data):
    assert str(reject(data)) == f"none of {', '.join(FORMATS)}: starts with {data[:12]!r}"


@pytest.mark.parametrize(
    "data, format_",
    [
        (FTYP + b"heic\0\0\0\0mif1heic", "HEIF"),
        (FTYP + b"mif1\0\0\0\0mif1heic", "HEIF"),
        (FTYP + b"mif1\0\0\0\0mif1avif", "AVIF"),
        (FTYP + b"avif\0\0\0\0mif1miaf", "AVIF"),
        (FTYP + b"hevc\0\0\0\0msf1hevc", "HEIF"),
        (FTYP + b"isom\0\0\0\0mp41avc1", None),
        (FTYP + b"he", "HEIF"),
        (b"\0\0\0\x18fty", "AVIF"),
        (b"\0\0\0\x18", None),
        (b"II+\0\x08\0\0\0", "TIFF"),
    ],
)
def test_the_format_is_told_by_the_first_bytes(data, format_):
    assert picture_format(data) == format_


# HEIC


def test_a_heic_gives_the_pixels_that_pillow_heif_gives():
    data = encoded("HEIF", quality=80)
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((51, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(image.crop((10, 0, 42, 32))).transpose(2, 0, 1)
    found = decode(data, Preprocessing(SIDE))
    np.testing.assert_array_equal(found.pixels, expected)
    assert (found.width, found.height) == (32, 20)


WITHOUT = """
import sys
sys.modules["pillow_heif"] = None
from clip_transforms.clip.preprocess import ImageError, decode_image
for path in sys.argv[1:]:
    try:
        print(decode_image(open(path, "rb").read(), 32).shape)
    except ImageError as error:
        print(error.reason, error)
"""


def test_without_the_extra_a_heic_is_a_reject_that_names_the_extra(tmp_path):
    (tmp_path / "a.heic").write_bytes(encoded("HEIF"))
    (tmp_path / "cut.heic").write_bytes(encoded("HEIF")[:60])
    (tmp_path / "b.avif").write_bytes(encoded("AVIF"))
    argv = [sys.executable, "-c", WITHOUT, *(str(tmp_path / name) for name in ("a.heic", "cut.heic", "b.avif"))]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    heic, cut, avif = done.stdout.splitlines()
    said = "unknown format HEIC needs the extra [heic]: pip install pillow-heif"
    assert heic == cut == said and avif == "(3, 32, 32)", done.stderr
