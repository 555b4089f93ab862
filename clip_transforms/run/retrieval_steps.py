"""The steps of `evaluate` that look for the captions of images, and for the images of captions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.evaluation.rows import Rows, unit_vectors
from clip_transforms.evaluation.truth import flat
from clip_transforms.metrics.ranks import KS, Queries, ranks
from clip_transforms.parts.counts import add
from clip_transforms.parts.reader import read_table
from clip_transforms.run.evaluate_steps import Evaluating, OverRuns, Run, State
from clip_transforms.run.over_parts import Step
from clip_transforms.run.tally import by_group, check_groups
from clip_transforms.select.bucket_file import read_bucket, read_bytes, read_ends, read_note, write_buckets

IMAGES, CAPTIONS, OWNERS, IMAGE_GROUPS, CAPTION_GROUPS = range(5)  # buckets of a file
DIRECTIONS = {"image_to_caption": (IMAGES, CAPTIONS), "caption_to_image": (CAPTIONS, IMAGES)}
_QUERIES = 8_192  # queries of a task
_CANDIDATES = 8_192  # candidates that are read at once
NO_IMAGE = -1


class _WriteVectors(OverRuns):
    """Run of parts → its images and captions, and which caption belongs to which image, in one file."""

    def do(self, item: Run) -> Counter:
        number, parts = item
        uri = self.run.work("pairs", number)
        if read_note(uri) is None:
            pieces = [_pairs(self.run, part) for part in parts]
            names = sorted({group for _, groups, _ in pieces for of in groups for group in of if group is not None})
            codes: dict[str | None, int] = {group: code for code, group in enumerate(names)}
            images = np.concatenate([vectors[0] for vectors, _, _ in pieces])
            captions = np.concatenate([vectors[1] for vectors, _, _ in pieces])
            starts = np.cumsum([0, *(len(of[0]) for of, _, _ in pieces[:-1])])
            owners = [
                np.where(of[2] < 0, NO_IMAGE, of[2] + start) for (of, _, _), start in zip(pieces, starts, strict=True)
            ]
            groups = [[codes.get(group, -1) for _, of, _ in pieces for group in of[side]] for side in (0, 1)]
            counts = add(counter for _, _, counter in pieces)
            buckets = [images, captions, np.concatenate(owners).astype("<i8"), *(np.array(of, "<i4") for of in groups)]
            write_buckets(
                uri, buckets, self.run.folder, {"counts": dict(counts), "groups": names, "d": images.shape[1]}
            )
        return Counter((read_note(uri) or {})["counts"])

    def after(self, state: State, total: Counter) -> dict[str, Any]:
        return {**state, "retrieval": {"rows": total}}


def _pairs(run: Evaluating, part: Any) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[list, list], Counter]:
    """Read a part: images, captions and the image of each caption; the groups of both; and the counts."""
    run = dataclasses.replace(run, source=dataclasses.replace(run.source, truth=None))
    images = run.read(part, "image_embedding")
    captions = _all_captions(run, part) if run.all_captions else run.read(part, "caption_embedding")
    rows = np.asarray(captions.table.column("row"))
    own = np.asarray(images.table.column("row"))
    order = np.argsort(own)
    found = np.searchsorted(own, rows, sorter=order)
    places = order[np.minimum(found, max(0, len(own) - 1))] if len(own) else np.zeros(len(rows), np.int64)
    owners = np.where(own[places] == rows, places, NO_IMAGE) if len(own) else np.full(len(rows), NO_IMAGE)
    with_caption = len(np.unique(owners[owners >= 0]))
    counts = Counter(
        seen=images.counts["seen"],
        not_selected=images.counts["not_selected"],
        images=len(own),
        captions=len(rows),
        without_caption=len(own) - with_caption,
        without_image=int((owners < 0).sum()),
        **{name: count for name, count in images.counts.items() if name == "without_group"},
    )
    none: list[list] = [[None] * len(own), [None] * len(rows)]
    groups = [of.groups if of.groups is not None else empty for of, empty in zip((images, captions), none, strict=True)]
    return (images.vectors, captions.vectors, owners), (groups[0], groups[1]), counts


def _all_captions(run: Evaluating, part: Any) -> Rows:
    """Read all captions of the samples of a part, with the groups of these samples."""
    name, digest = part
    samples = read_table(
        run.source.dataset, name, ["row", *([run.source.group_column] if run.source.group_column else [])]
    )
    selected = flat(samples.column("row")).filter(pa.array(run.source.selection.mask(name, samples.column("row"))))
    table = read_table(
        run.source.dataset, name, ["row", "caption_embedding"], rows="captions", made_from={"captions": digest}
    )
    wanted = np.asarray(pc.is_in(table.column("row"), value_set=selected))
    vectors, has = unit_vectors(table.column("caption_embedding"), wanted)
    rows = table.select(["row"]).filter(pa.array(has))
    groups = None
    if run.source.group_column:
        place = pc.index_in(rows.column("row"), value_set=flat(samples.column("row")))
        groups = flat(samples.column(run.source.group_column)).take(flat(place)).cast(pa.string()).to_pylist()
    return Rows(rows, vectors, None, groups, Counter())


@dataclasses.dataclass(frozen=True)
class _Rank(Step):
    """(Direction, file, some of its queries) → for each group, how many found a right candidate among the first k."""

    run: Evaluating

    def items(self, state: State) -> Iterator[tuple[str, int, int]]:
        for direction, (queries, _) in DIRECTIONS.items():
            for number, uri in enumerate(self.run.works("pairs")):
                start, stop = read_ends(uri, queries, queries + 1)
                count = int(stop - start) // (4 * (read_note(uri) or {})["d"]) if stop > start else 0
                for first in range(0, count, _QUERIES):
                    yield direction, number, first

    def do(self, item: tuple[str, int, int]) -> dict[str, dict[str | None, Counter]]:
        direction, number, first = item
        queries, candidates = DIRECTIONS[direction]
        uris = self.run.works("pairs")
        before = sum(_count(uri, candidates) for uri in uris[:number])
        owners = np.frombuffer(read_bucket(uris[number], OWNERS), "<i8")
        query, right = np.flatnonzero(owners >= 0), owners[owners >= 0]
        if direction == "image_to_caption":
            order = np.argsort(right, kind="stable")
            query, right = right[order], query[order]
        some = (query >= first) & (query < first + _QUERIES)
        wanted, places = np.unique(query[some], return_inverse=True)
        if not len(wanted):
            return {direction: {}}
        vectors, all_right = _vectors(uris[number], queries), _vectors(uris[number], candidates)
        made = Queries.of(vectors[wanted], all_right[right[some]], places, right[some] + before)
        ahead, tied = ranks(made, (piece for uri in uris for piece in _pieces(uri, candidates)))
        names = np.array([*(read_note(uris[number]) or {})["groups"], None], object)
        codes = np.frombuffer(read_bucket(uris[number], IMAGE_GROUPS + queries), "<i4")[wanted]
        found = {}
        for group, of in by_group(names[codes].tolist(), len(wanted)).items():
            hits = {f"recall@{k}": int((ahead[of] < k).sum()) for k in KS}
            found[group] = Counter(n=len(of), tied=int(tied[of].sum()), **hits)
        return {direction: found}

    def add(self, summaries: Any) -> dict[str, dict[str | None, Counter]]:
        total: dict[str, dict[str | None, Counter]] = {}
        for summary in summaries:
            for direction, groups in summary.items():
                for group, counts in groups.items():
                    total.setdefault(direction, {}).setdefault(group, Counter()).update(counts)
        for groups in total.values():
            check_groups(groups)
        return total

    def after(self, state: State, total: dict[str, dict[str | None, Counter]]) -> dict[str, Any]:
        return {**state, "retrieval": {**state["retrieval"], "found": total}}


def _count(uri: str, bucket: int) -> int:
    start, stop = read_ends(uri, bucket, bucket + 1)
    return int(stop - start) // (4 * (read_note(uri) or {})["d"]) if stop > start else 0


def _vectors(uri: str, bucket: int) -> np.ndarray:
    """Read all vectors of a bucket, float32 [n, d]."""
    return np.concatenate([np.empty((0, (read_note(uri) or {})["d"]), np.float32), *_pieces(uri, bucket)])


def _pieces(uri: str, bucket: int) -> Iterator[np.ndarray]:
    """Yield the vectors of a bucket in pieces, float32 [up to _CANDIDATES, d]."""
    d = (read_note(uri) or {})["d"]
    start, stop = map(int, read_ends(uri, bucket, bucket + 1))
    for first in range(start, stop, 4 * d * _CANDIDATES if d else 1):
        data = read_bytes(uri, first, min(stop, first + 4 * d * _CANDIDATES))
        yield np.frombuffer(data, np.float32).reshape(-1, d)


def retrieval_steps(run: Evaluating) -> list[Step]:
    """Return the steps that measure retrieval."""
    return [_WriteVectors(run), _Rank(run)]
