"""Read webdataset tars. Consecutive members with the same key are one sample."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.shards.batches import (
    MAX_METADATA_BYTES,
    TOO_MUCH_METADATA,
    batch_samples,
    caption_fields,
    caption_file_too_large,
    decode_caption,
    decode_metadata,
    note_lines,
    read_reject,
    text_of,
    too_large,
)
from clip_transforms.shards.beside import SNIFFED_BYTES, caption_extensions
from clip_transforms.shards.hive import fill_in_all
from clip_transforms.shards.json_fields import SeenFields, count_unread, field_names, json_field
from clip_transforms.shards.tar import Member, read_members
from clip_transforms.shards.unit import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS, ReaderOptions, ShardError, Unit

_SHARED_KEY = "pictures that share a key, which ends at the first dot of a name, with others, and were not read"
_FURTHER_TEXTS = "members that are further texts of a key, and were not read; --caption_column takes another extension"
_NAMED = 5  # number of a key's images that a reject names


def read_webdataset(unit: Unit, options: ReaderOptions, batch_size: int, notes: Counter) -> Iterator[pa.RecordBatch]:
    """Stream a tar; memory does not grow with its size.

    Raises:
        ShardError: if it ends early or is not a tar; after the samples before the damage.
    """
    fields = SeenFields()
    try:
        samples = fill_in_all(_samples(unit, options, notes, fields), unit.shard, options)
        yield from batch_samples(samples, options, batch_size, notes)
    finally:  # also where the limit ends the unit early
        fields.note(notes)


def _samples(unit: Unit, options: ReaderOptions, notes: Counter, fields: SeenFields) -> Iterator[dict[str, Any]]:
    seen: set[bytes] = set()  # eight bytes per key
    group: _Group | None = None
    rows = 0
    try:
        with contextlib.closing(read_members(unit.uri)) as members:
            for member in members:
                folder, base = posixpath.split(member.name)
                if base.startswith("."):
                    if not base.startswith("._"):  # those hold what macOS knows of a file, no picture
                        notes["members that are dot files, which are not read"] += 1
                    continue
                stem, _, extension = base.partition(".")
                key = posixpath.join(folder, stem)
                if group is None or key != group.key:
                    if group is not None:
                        yield group.sample()
                    short = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
                    if short in seen:
                        notes["keys that come back after others"] += 1
                    seen.add(short)
                    group = _Group(key, rows, options, notes, fields)
                    rows += 1
                group.add(extension.lower(), member)
    except ShardError as error:
        if group is not None:  # its members before the damage are intact, and the damaged one is a reject
            yield group.sample()
        raise ShardError(error.reason, f"after {rows:,} samples: {error}") from error
    if group is not None:
        yield group.sample()


@dataclasses.dataclass
class _Candidates:
    """The members that may be the image of a key: the first one, and their number."""

    count: int = 0
    num_bytes: int = 0
    names: list[str] = dataclasses.field(default_factory=list)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def image(self, key: str) -> dict[str, Any]:
        """Return `image`, `image_reject`, or nothing."""
        if self.count < 2:
            return self.fields
        more = f" and {self.count - _NAMED:,} more" if self.count > _NAMED else ""
        message = f"{self.count:,} images under the key {key[:200]!r} ({', '.join(self.names)}{more}): "
        choice = f"choose one with --image_extension, as {self.names[0].removeprefix('.') or 'EXT'}"
        if len(set(self.names)) < len(self.names):
            message += "two members have one name; write the tar again with a name for each"
        elif any("." in name[1:] for name in self.names):
            message += (
                f"a key ends at the first dot of a member's name; if these are pictures of one sample, {choice}; if "
                "each is a sample of its own, rename the members so that the only dot is before the extension"
            )
        else:
            message += choice
        return {"image_reject": read_reject("several images", message, self.num_bytes)}


class _Group:
    """The members of one key. It holds at most one image of each kind and each text once, however many members come."""

    def __init__(self, key: str, row: int, options: ReaderOptions, notes: Counter, seen: SeenFields):
        self.key, self.row, self.options, self.notes, self.seen = key, row, options, notes, seen
        self.whole = _Candidates()  # a.jpg
        self.tails = _Candidates()  # a.seg.png, which is used if there is no other image
        self.bare = _Candidates()  # a, which is used if there is no image with an extension
        self.caption_extensions = caption_extensions(options)
        self.unread: set[str] = set()  # some of the extensions
        self.captions: dict[str, dict[str, Any]] = {}  # extension → fields of the sample
        self.others: dict[str, bytes | None] = {}
        self.fields_wanted = {column.field.lower() for column in options.columns}
        self.others_images = 0  # images that --image_extension passes over

    def add(self, extension: str, member: Member) -> None:
        """Take a member, and read it if it is used and within its limit.

        Raises:
            ShardError: if the tar is damaged inside the member; the group then holds a reject for it.
        """
        candidates = self._candidates(extension, member)
        if candidates is not None:
            self._add_image(candidates, extension, member)
        elif extension in self.captions or extension in self.others:
            self.notes["members whose name comes twice under a key; the first one counts"] += 1
        elif extension in self.caption_extensions:
            self._add_caption(extension, member)
        elif extension == "json" or extension in self.fields_wanted:
            self.others[extension] = self._read_other(member)
        elif extension not in CAPTION_EXTENSIONS and not self._is_image(extension):  # those were passed over by choice
            self._pass_over(extension)

    def _pass_over(self, extension: str) -> None:
        if len(self.unread) < _NAMED:
            self.unread.add(extension)
        count_unread(extension.rpartition(".")[2], self.notes)

    def _is_image(self, extension: str) -> bool:
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS

    def _candidates(self, extension: str, member: Member) -> _Candidates | None:
        if self.options.image_extension:
            if extension == self.options.image_extension.lower().removeprefix("."):
                return self.whole
            self.others_images += self._is_image(extension)
            return None
        if extension in IMAGE_EXTENSIONS:
            return self.whole
        if self._is_image(extension):
            return self.tails
        if extension or member.problem or picture_format(member.start(SNIFFED_BYTES)) is None:
            return None
        return self.bare

    def _add_image(self, candidates: _Candidates, extension: str, member: Member) -> None:
        candidates.count += 1
        candidates.num_bytes += member.size
        if candidates.count <= _NAMED:
            candidates.names.append(f".{extension}")
        candidates.fields = {}
        if candidates.count == 1:  # of several images none is taken, so later ones are not read
            candidates.fields = {"image_reject": member.lost()}
            if member.problem is None and member.size > self.options.max_image_bytes:
                candidates.fields = too_large("image", member.size, self.options.max_image_bytes)
            elif member.problem is None:
                candidates.fields = {"image": member.read()}

    def _add_caption(self, extension: str, member: Member) -> None:
        self.captions[extension] = {"caption_reject": member.lost()}
        if member.problem is None and member.size > self.options.max_caption_file_bytes:
            self.captions[extension] = caption_file_too_large(member.size, self.options)
        elif member.problem is None:
            data = member.read()
            self.captions[extension] = decode_caption(data, self.options)
            if extension in self.fields_wanted:
                self.others[extension] = data

    def _read_other(self, member: Member) -> bytes | None:
        if member.problem is None and member.size <= MAX_METADATA_BYTES:
            try:
                return member.read()
            except ShardError:
                self.notes["members that could not be read"] += 1
                raise
        self.notes["members that could not be read" if member.problem else TOO_MUCH_METADATA] += 1
        return None

    def sample(self) -> dict[str, Any]:
        """Return the sample that the members make."""
        json_bytes = self.others.get("json")
        text, fields = (None, {}) if json_bytes is None else decode_metadata(json_bytes, self.notes)
        # A text of white space alone offers nothing, and the next place may.
        caption = next((found for e in self.caption_extensions if (found := self.captions.get(e))), {})
        note_lines(caption.get("caption"), self.options, self.notes)
        further = sum(map(bool, self.captions.values())) - 1
        if further > 0:
            self.notes[_FURTHER_TEXTS] += further
        if not caption:
            caption = caption_fields(json_field(fields, self.options.caption_column or "caption"), self.options)
        candidates = next((found for found in (self.whole, self.tails, self.bare) if found.count), self.whole)
        for passed in [found for found in (self.tails, self.bare) if found is not candidates]:
            for name in passed.names:
                count_unread(name.removeprefix("."), self.notes)
        if candidates.count > 1:
            self.notes[_SHARED_KEY] += candidates.count
        if not candidates.count and self.others_images:
            self.notes["keys whose only images have another extension than --image_extension"] += 1
        sample = {
            "key": text_of(self.key),
            "row": self.row,
            "metadata": text,
            **candidates.image(text_of(self.key)),
            **caption,
        }
        for column in self.options.columns:
            member = self.others.get(column.field.lower())
            sample[column.name] = json_field(fields, column.field) if member is None else member
        self.seen.add(sample, (*(f".{extension}" for extension in self.unread if extension), *field_names(fields)))
        return sample
