"""A row of a dataset → the members of a webdataset sample: picture, caption, and JSON of what is known of it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.exports.rows import LABEL_FIELDS

# Pillow's name of a format → extension.
_EXTENSIONS = {
    **{"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"},
    "HEIF": "heic",
}
_PICTURE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|jfif|jpe|pjpeg|pjp|hei[cf]|hif)$", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w-]+")  # dots end a key, slashes make folders
_LONGEST = 120  # characters of a name


class Names:
    """The names of the samples of one tar: safe as file names, and each only once."""

    def __init__(self):
        """Start without any."""
        self._used: set[str] = set()
        self._last: dict[str, int] = {}

    def of(self, key: str) -> str:
        """Return the name of the next sample: its key as far as it may be one, numbered if it was there already."""
        stem = _UNSAFE.sub("_", _PICTURE_NAME.sub("", key)).strip("_")[:_LONGEST] or "sample"
        name = stem
        while name in self._used:
            self._last[stem] = self._last.get(stem, 1) + 1
            name = f"{stem}-{self._last[stem]}"
        self._used.add(name)
        return name


def members_of(
    name: str,
    row: Mapping[str, Any],
    image: bytes | None,
    columns: Sequence[str],
    taxonomies: Sequence[str],
    *,
    captions: str | None = None,
) -> list[tuple[str, bytes]]:
    """Return the members of a sample, as (name, bytes).

    Args:
        name: name of the sample in its tar.
        row: values of the row, with labels as `<taxonomy>.label` and so on, and float32 as NumPy has it.
        image: the encoded bytes, as the source has them; None for a sample without a picture.
        columns: names of the user's own columns.
        taxonomies: names of the taxonomies.
        captions: all captions of the sample, a line each; None for the one of the row.
    """
    members = []
    if image is not None:
        # It was decoded once, so its format is known.
        members.append((f"{name}.{_EXTENSIONS.get(picture_format(image[:64]) or '', 'jpg')}", image))
    caption = row["caption"] if captions is None else captions
    if caption is not None:
        members.append((f"{name}.txt", _text_file(caption)))
    text = json.dumps(_fields(row, columns, taxonomies), ensure_ascii=False, default=str)
    members.append((f"{name}.json", text.encode()))
    return members


def _text_file(caption: str) -> bytes:
    """Encode a caption so that reading gives it back: readers drop a byte order mark at the beginning."""
    data = caption.encode()
    return codecs.BOM_UTF8 + data if data.startswith(codecs.BOM_UTF8) else data


def _fields(row: Mapping[str, Any], columns: Sequence[str], taxonomies: Sequence[str]) -> dict[str, Any]:
    """Return the sample's own metadata with the dataset's fields in it.

    A field of the metadata, or a column of the user's, whose name is taken is kept inside `metadata`.
    """
    fields, own = _metadata(row["metadata"]), {name: _plain(row[name]) for name in columns}
    ours: dict[str, Any] = {"key": row["key"], "caption": row["caption"], "clip_score": _plain(row["clip_score"])}
    if taxonomies:
        ours["labels"] = {taxonomy: _label(row, taxonomy) for taxonomy in taxonomies}
    displaced = _displaced(fields, {**own, **ours}) | _displaced(own, ours)
    if displaced and "metadata" in fields:
        displaced["metadata"] = fields["metadata"]
    return {**fields, **own, **ours, **({"metadata": displaced} if displaced else {})}


def _displaced(fields: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in others and value != others[name]}


def _metadata(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}", parse_constant=lambda _: None)  # JSON has no NaN and no infinity
    except (ValueError, RecursionError):
        return {"metadata": text}
    return fields if isinstance(fields, dict) else {"metadata": text}


def _label(row: Mapping[str, Any], taxonomy: str) -> dict[str, Any] | None:
    if row[f"{taxonomy}.label"] is None:
        return None
    return {name: _plain(row[f"{taxonomy}.{name}"]) for name in LABEL_FIELDS}


def _plain(value: Any) -> Any:
    """Return a value that JSON has; of a float32 the shortest text that gives the same float32."""
    if isinstance(value, (np.floating, float)):
        return float(str(value)) if np.isfinite(value) else None
    return value
