"""Webdataset tars: members that share a key, one after the other, are a sample."""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import (
    batch_samples,
    caption_fields,
    decode_caption,
    decode_metadata,
    read_reject,
)
from clip_transforms.shards.unit import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS, ReaderOptions, ShardError, Unit

_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error)


def read_webdataset(unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter) -> Iterator[pa.RecordBatch]:
    """Read a tar, streaming; memory does not grow with it.

    Raises:
        ShardError: after the samples before the damage, if the tar ends early or is not one.
    """
    yield from batch_samples(_samples(unit, options, notes), options, batch_size, notes)


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is not one ends the tar with an error; `tarfile` would end it without a word."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:
            raise ShardError(
                "unreadable", f"{error} at byte {tar.offset}, where a tar header or end belongs"
            ) from error


def _members(unit: Unit) -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
    """Key, extension in lower case, and the member itself, which must be read before the next."""
    try:
        with (
            storage.open_input(unit.uri) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictTarInfo) as tar,
        ):
            for member in tar:
                tar.members.clear()  # else a tar's headers pile up in memory
                folder, base = posixpath.split(member.name)
                if not member.isdir() and not base.startswith("."):
                    stem, _, extension = base.partition(".")
                    yield posixpath.join(folder, stem), extension.lower(), member, tar
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):  # two tars, one behind the other: `tarfile` stops at the end mark of the first
                    raise ShardError(
                        "unreadable", f"something follows the end mark at byte {tar.offset}; extract it apart"
                    )
    except FileNotFoundError as error:
        raise ShardError("vanished", f"{unit.uri} is gone since the run was planned") from error
    except _DAMAGE as error:
        raise ShardError("unreadable", f"{type(error).__name__}: {error}") from error


def _samples(unit: Unit, options: ReaderOptions, notes: Counter) -> Iterator[dict[str, Any]]:
    seen: set[bytes] = set()  # eight bytes a key
    group: _Group | None = None
    rows = 0
    try:
        for key, extension, member, tar in _members(unit):
            if group is None or key != group.key:
                if group is not None:
                    yield group.sample()
                short = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
                if short in seen:
                    notes["keys that come back after others"] += 1
                seen.add(short)
                group = _Group(key, rows, options, notes)
                rows += 1
            if group.wants(extension) and not member.isfile():
                group.lose(
                    extension, f"{member.name} is a link to {member.linkname} or no file; links are not followed"
                )
            elif group.wants(extension):
                try:
                    group.add(extension, tar.extractfile(member).read())
                except _DAMAGE as error:
                    group.lose(extension, f"{type(error).__name__}: {error}")
                    raise ShardError("unreadable", f"{member.name}: {type(error).__name__}: {error}") from error
    except ShardError as error:
        if group is not None:  # its members before the damage are whole, and the lost one is a reject
            yield group.sample()
        raise ShardError(error.reason, f"after {rows:,} samples: {error}") from error
    if group is not None:
        yield group.sample()


class _Group:
    """The members of one key."""

    def __init__(self, key: str, row: int, options: ReaderOptions, notes: Counter):
        self.key, self.row, self.options, self.notes = key, row, options, notes
        self.images: list[tuple[str, bytes]] = []
        self.others: dict[str, bytes] = {}
        self.lost: dict[str, Any] = {}
        self.others_images = 0  # images that --image_extension passes over

    def wants(self, extension: str) -> bool:
        """Whether a member of that extension is worth reading."""
        if not self._is_image(extension) and extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            self.others_images += 1
        return (
            self._is_image(extension)
            or extension == "json"
            or extension in CAPTION_EXTENSIONS
            or any(extension == column.field.lower() for column in self.options.columns)
        )

    def _is_image(self, extension: str) -> bool:
        if self.options.image_extension:
            return extension == self.options.image_extension.lower().removeprefix(".")
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS

    def add(self, extension: str, data: bytes) -> None:
        """Take a member."""
        if self._is_image(extension):
            self.images.append((extension, data))
        else:
            self.others.setdefault(extension, data)

    def lose(self, extension: str, message: str) -> None:
        """Take note of a member that the damage of the tar fell into."""
        if self._is_image(extension):
            self.images.clear()
            self.lost["image_reject"] = read_reject("unreadable", message, None)
        elif extension in CAPTION_EXTENSIONS:
            self.lost["caption_reject"] = read_reject("unreadable", message, None)
        else:
            self.notes["members that could not be read"] += 1

    def sample(self) -> dict[str, Any]:
        """What the members make."""
        text, fields = decode_metadata(self.others["json"], self.notes) if "json" in self.others else (None, {})
        caption = next((self.others[e] for e in CAPTION_EXTENSIONS if e in self.others), None)
        sample = {"key": _text(self.key), "row": self.row, "metadata": text, **self._image()}
        sample |= caption_fields(fields.get("caption")) if caption is None else decode_caption(caption)
        for column in self.options.columns:
            member = self.others.get(column.field.lower())
            sample[column.name] = fields.get(column.field) if member is None else member
        return sample | self.lost

    def _image(self) -> dict[str, Any]:
        whole = [image for image in self.images if self.options.image_extension or image[0] in IMAGE_EXTENSIONS]
        candidates = whole or self.images
        if not candidates and self.others_images:
            self.notes["keys whose only images have another extension than --image_extension"] += 1
        if len(candidates) > 1:
            names = ", ".join(f".{extension}" for extension, _ in candidates)
            message = f"{len(candidates)} images under one key ({names}): choose one with --image_extension"
            return {"image_reject": read_reject("several images", message, sum(len(data) for _, data in candidates))}
        return {"image": candidates[0][1]} if candidates else {}


def _text(name: str) -> str:
    """A member's name as UTF-8; `tarfile` keeps foreign bytes as surrogates, which Arrow does not take."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
