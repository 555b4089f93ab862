"""Read webdataset tars. Consecutive members with the same key are one sample."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa

from clip_transforms.shards.batches import (
    MAX_METADATA_BYTES,
    TOO_MUCH_METADATA,
    batch_samples,
    caption_fields,
    caption_file_too_large,
    decode_caption,
    decode_metadata,
    note_lines,
    text_of,
)
from clip_transforms.shards.beside import caption_extensions
from clip_transforms.shards.hive import fill_in_all
from clip_transforms.shards.json_fields import SeenFields, count_unread, field_names, json_field
from clip_transforms.shards.tar import Member, read_members
from clip_transforms.shards.tar_samples import ImageChoice, is_image, keyed_members
from clip_transforms.shards.unit import CAPTION_EXTENSIONS, ReaderOptions, ShardError, Unit

_SHARED_KEY = "pictures that share a key, which ends at the first dot of a name, with others, and were not read"
_FURTHER_TEXTS = "members that are further texts of a key, and were not read; --caption_column takes another extension"
_NAMED = 5  # number of a key's members that are not read which a note names


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
    extensions = caption_extensions(options)
    wanted = {column.field.lower() for column in options.columns}
    try:
        with contextlib.closing(read_members(unit.uri)) as members:
            for row, key, extension, member in keyed_members(members, notes):
                if group is None or row != group.row:
                    if group is not None:
                        yield group.sample()
                    short = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
                    if short in seen:
                        notes["keys that come back after others"] += 1
                    seen.add(short)
                    group = _Group(key, row, options, extensions, wanted, notes, fields)
                group.add(extension, member)
    except ShardError as error:
        if group is not None:  # its members before the damage are intact, and the damaged one is a reject
            yield group.sample()
        rows = group.row + 1 if group is not None else 0
        raise ShardError(error.reason, f"after {rows:,} samples: {error}") from error
    if group is not None:
        yield group.sample()


class _Group:
    """The members of one key. It holds at most one image of each kind and each text once, however many members come."""

    def __init__(
        self,
        key: str,
        row: int,
        options: ReaderOptions,
        extensions: Sequence[str],
        wanted: Collection[str],
        notes: Counter,
        seen: SeenFields,
    ):
        """Begin a sample.

        Args:
            key: the sample's key.
            row: its row in the shard.
            options: settings of the reader.
            extensions: those that captions may have.
            wanted: those that the user's columns ask for.
            notes: counter for oddities.
            seen: the fields of the unit's first samples.
        """
        self.key, self.row, self.options, self.notes, self.seen = key, row, options, notes, seen
        self.images = ImageChoice(options, Member.read)
        self.caption_extensions, self.fields_wanted = extensions, wanted
        self.unread: set[str] = set()  # some of the extensions
        self.captions: dict[str, dict[str, Any]] = {}  # extension → fields of the sample
        self.others: dict[str, bytes | None] = {}

    def add(self, extension: str, member: Member) -> None:
        """Take a member, and read it if it is used and within its limit.

        Raises:
            ShardError: if the tar is damaged inside the member; the group then holds a reject for it.
        """
        if self.images.add(extension, member):
            return
        if extension in self.captions or extension in self.others:
            self.notes["members whose name comes twice under a key; the first one counts"] += 1
        elif extension in self.caption_extensions:
            self._add_caption(extension, member)
        elif extension == "json" or extension in self.fields_wanted:
            self.others[extension] = self._read_other(member)
        elif extension not in CAPTION_EXTENSIONS and not is_image(extension):  # those were passed over by choice
            self._pass_over(extension)

    def _pass_over(self, extension: str) -> None:
        if len(self.unread) < _NAMED:
            self.unread.add(extension)
        count_unread(extension.rpartition(".")[2], self.notes)

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
        candidates, passed = self.images.chosen()
        for name in passed:
            count_unread(name.removeprefix("."), self.notes)
        if candidates.count > 1:
            self.notes[_SHARED_KEY] += candidates.count
        if not candidates.count and self.images.others:
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
        unread = (f".{extension}" for extension in self.unread if extension)
        self.seen.add(sample, itertools.chain(unread, field_names(fields)))
        return sample
