"""Write selected samples as webdataset tars: the original pictures, captions, and JSON of what is known of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.groups import Group, padded
from clip_transforms.exports.rows import ExportRows
from clip_transforms.exports.tar_file import TarFile
from clip_transforms.exports.tar_members import Names, members_of
from clip_transforms.parts.reader import KEYS, read_table

FOLDER = "shards"
_STATS = "_stats.json"
_DIGITS = 5  # of the name of a tar, as img2dataset has it
_COLUMNS = ("key", "shard", "row", "caption", "width", "image_sha256", "clip_score", "metadata")

# (part, [(row, key, image_sha256)]) → for each of them its row, its picture, and if there is none, the reason.
ReadPictures = Callable[[str, Sequence[tuple[int, str, str]]], Iterator[tuple[int, bytes | None, str]]]


@dataclasses.dataclass(frozen=True)
class WebDataset:
    """An export as tars. It is small and can be sent to workers.

    Attributes:
        rows: the rows that are taken.
        output: URI of the export.
        scratch: URI of the run's temporary folder.
        per_shard: the most rows of a shard.
        shards: number of shards of the export.
        columns: names of the user's own columns.
        all_captions: whether the dataset has all captions of a sample; its text then has one a line.
    """

    rows: ExportRows
    output: str
    scratch: str
    per_shard: int
    shards: int
    columns: tuple[str, ...]
    all_captions: bool

    def write(self, group: Group, read: ReadPictures) -> Counter:
        """Write the shards of a group that are not there yet; what became of all of its rows.

        A row whose picture is lost is left out, so a shard may hold fewer rows than the others.

        Args:
            group: the group.
            read: reads pictures again from their source.
        Returns:
            Counts: `rows`, `samples` (written), `shards` (written, now or earlier), and `lost.<reason>`.
        """
        numbers = range(group.first, group.first + group.files)
        counts = {number: counts for number in numbers if (counts := self._committed(number)) is not None}
        if len(counts) < group.files:
            places = itertools.groupby(self._rows(group, counts, read), key=lambda row: row.shard)
            for number, of_shard in places:
                counts[number] = self._write_shard(number, of_shard)
        return sum(counts.values(), Counter())

    def _uri(self, number: int, end: str) -> str:
        return _uri(self.output, number, self.shards, end)

    def _committed(self, number: int) -> Counter | None:
        """Return the counts of a shard that is there already."""
        if not storage.exists(stats := self._uri(number, _STATS)):
            return None
        counts = _counts_of(json.loads(storage.read_bytes(stats)))
        return counts if not counts["samples"] or storage.exists(self._uri(number, ".tar")) else None

    def _write_shard(self, number: int, rows: Iterator[_Row]) -> Counter:
        """Write a shard, and beside it its counts, which appear first. Without samples there is no tar."""
        counts, names, lost = Counter[str](), Names(), list[dict[str, Any]]()
        with TarFile(self.scratch) as tar:
            for row in rows:
                counts["rows"] += 1
                if row.lost:
                    counts[f"lost.{row.lost}"] += 1
                    lost.append({**{name: row.values[name] for name in KEYS}, "reason": row.lost})
                    continue
                counts["samples"] += 1
                name = names.of(row.values["key"])
                row_of = (name, row.values, row.image, self.columns, self.rows.taxonomies)
                tar.add(members_of(*row_of, captions=row.captions))
            content = json.dumps(_stats_of(counts) | ({"left_out": lost} if lost else {}), indent=1) + "\n"
            storage.write_bytes(self._uri(number, _STATS), content.encode(), self.scratch)
            if counts["samples"]:
                counts["shards"] = 1
                tar.commit(self._uri(number, ".tar"))
        return counts

    def _rows(self, group: Group, done: Mapping[int, Any], read: ReadPictures) -> Iterator[_Row]:
        """Yield the rows of those shards of a group that are not there yet."""
        place = 0
        for part, count in group.parts:
            shards = [group.first + (place + i) // self.per_shard for i in range(count)]
            place += count
            wanted = [i for i, shard in enumerate(shards) if shard not in done]
            if wanted:
                table = self.rows.table(part, [*_COLUMNS, *self.columns], with_labels=True)
                assert table.num_rows == count, f"{part} has {table.num_rows} rows, but {count} were counted"
                yield from self._of_part(part, table.take(wanted), [shards[i] for i in wanted], read)

    def _of_part(self, part: str, table: pa.Table, shards: Sequence[int], read: ReadPictures) -> Iterator[_Row]:
        rows = [dict(zip(table.column_names, v, strict=True)) for v in zip(*map(_values, table.columns), strict=True)]
        captions = self._captions(part) if self.all_captions else {}
        # A picture that could be decoded has a width; one that could not is in the rejects, and is not exported.
        pictures = read(part, [(r["row"], r["key"], r["image_sha256"]) for r in rows if r["width"] is not None])
        for row, shard in zip(rows, shards, strict=True):
            place, image, lost = (row["row"], None, "") if row["width"] is None else next(pictures)
            assert place == row["row"]
            yield _Row(shard, row, image, lost, captions.get(place))

    def _captions(self, part: str) -> dict[int, str]:
        """Return row → all captions of a sample, one a line, which is how `--captions all` reads them again."""
        table = read_table(self.rows.dataset, part, ["row", "caption"], rows="captions")
        found: defaultdict[int, list[str]] = defaultdict(list)
        for row, caption in zip(table.column("row").to_pylist(), table.column("caption").to_pylist(), strict=True):
            found[row].append(" ".join(caption.splitlines()))
        return {row: "\n".join(captions) for row, captions in found.items()}


def _uri(output: str, number: int, shards: int, end: str) -> str:
    return storage.join(output, FOLDER, f"{padded(number, shards, _DIGITS)}{end}")


def stats_uri(output: str, number: int, shards: int) -> str:
    """URI of the counts of a shard, of which there are `shards`; `left_out` names the rows that were lost."""
    return _uri(output, number, shards, _STATS)


class _Row(NamedTuple):
    shard: int
    values: dict[str, Any]
    image: bytes | None
    lost: str
    captions: str | None


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column; float32 as NumPy has it, which writes them shortest."""
    values = column.to_pylist()
    if pa.types.is_float32(column.type):
        return [None if value is None else np.float32(value) for value in values]
    return values


def _stats_of(counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of `<shard>_stats.json`, in img2dataset's words where it has some."""
    lost = {name.removeprefix("lost."): number for name, number in sorted(counts.items()) if name.startswith("lost.")}
    return {"count": counts.get("rows", 0), "successes": counts.get("samples", 0), "status_dict": lost}


def _counts_of(stats: Mapping[str, Any]) -> Counter:
    lost = {f"lost.{reason}": number for reason, number in stats["status_dict"].items()}
    return Counter(rows=stats["count"], samples=stats["successes"], shards=int(stats["successes"] > 0), **lost)
