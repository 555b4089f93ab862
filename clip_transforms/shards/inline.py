"""Decode pictures that a listing holds in its own text: `data:` URIs, and base64 without any prefix."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from clip_transforms.clip.picture_formats import picture_format

_HEAD = 64  # characters that tell a picture in base64 from a path
_LEAST = 24  # characters; fewer cannot be told from a path
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")
# What tells that a listing holds pictures: a `data:` URI, or a field with much base64. JSON may escape its slashes.
_DATA_IN_TEXT = re.compile(rb"data:image\\?/", re.IGNORECASE)
_MUCH = re.compile(rb"(?:^|[\"\t,;|\n])([\w+/\\-]{1000})")
_DATA_URI = re.compile(rb"(data:[^,\"]{0,100};base64,)[\w+/\\=%\s-]+", re.IGNORECASE)
_RUN = re.compile(rb"[\w+/=-]{%d,}" % _LEAST)


def is_inline(text: str) -> bool:
    """Return whether a text is a picture itself, and not the URI of one."""
    return text[:5].lower() == "data:" or _is_base64(text)


def is_picture(text: str) -> bool:
    """Return whether a text is surely a picture itself, whatever its column is called."""
    return text[:11].lower() == "data:image/" or _is_base64(text)


def _is_base64(text: str) -> bool:
    """Return whether a text is base64, usual or url-safe, that begins as a picture does."""
    head = "".join(text[:_HEAD].split()).translate(_URL_SAFE)
    head = head[: len(head) // 4 * 4]
    if len(head) < _LEAST or not _BASE64.fullmatch(head):
        return False
    try:
        return picture_format(base64.b64decode(head)) is not None
    except binascii.Error:
        return False


def holds_pictures(text: bytes) -> bool:
    """Return whether the beginning of a listing holds pictures as base64."""
    found = (match[1].replace(b"\\", b"").decode() for match in _MUCH.finditer(text))
    return _DATA_IN_TEXT.search(text) is not None or any(map(_is_base64, found))


def decode_inline(text: str) -> bytes:
    """Return the bytes of a picture.

    Raises:
        ValueError: if it is malformed; the message does not repeat it.
    """
    head, data = _split(text)
    if head and not _is_encoded(head):
        return unquote_to_bytes(data)
    if "%" in data:
        data = unquote(data)
    data = "".join(data.split()).translate(_URL_SAFE).rstrip("=")
    return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)


def inline_name(text: str) -> str:
    """Return how messages name a picture: without its data."""
    head, comma, _ = text[:100].partition(",")
    return head if head[:5].lower() == "data:" and comma else "a picture as base64"


def without_pictures(text: bytes) -> bytes:
    """Return the text of a row without the pictures in it, for messages."""
    short = _DATA_URI.sub(rb"\1...", text)
    return _RUN.sub(lambda run: b"..." if _is_base64(run[0].decode()) else run[0], short)


def _split(text: str) -> tuple[str, str]:
    """Return the head of a `data:` URI, up to its comma, and the data; without a head if it is base64 alone."""
    if text[:5].lower() != "data:":
        return "", text
    head, comma, data = text.partition(",")
    if not comma:
        raise ValueError("it has no comma before its data")
    return head, data


def _is_encoded(head: str) -> bool:
    return head.lower().rstrip().endswith(";base64")
