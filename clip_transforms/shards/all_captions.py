"""Collect the captions of a sample, as `--captions all` takes them: all in one list, and the first for the row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from schemas.samples import ALL_CAPTIONS, NUM_CAPTIONS

# Both bound memory: a caption of two bytes becomes an embedding of some kilobytes.
MAX_CAPTIONS = 1_000  # of one sample
MAX_BATCH_CAPTIONS = 4_096  # a batch ends early at this many captions


def all_captions(values: Iterable[Any], read: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Turn the values that a source offers as captions of one sample into fields of the sample.

    Args:
        values: the lines of a text file, or the entries of a list.
        read: turns a value into `caption`, into `caption_reject`, or into nothing if it holds only white space.
    Returns:
        `caption` or `caption_reject` of the first caption, and ALL_CAPTIONS and NUM_CAPTIONS; nothing without captions.
    """
    kept: list[dict[str, Any]] = []
    offered = 0
    for fields in map(read, values):
        if fields:
            offered += 1
            if offered <= MAX_CAPTIONS:
                kept.append({"caption": fields.get("caption"), "reject": fields.get("caption_reject")})
    if not kept:
        return {}
    first = {"caption": kept[0]["caption"], "caption_reject": kept[0]["reject"]}
    return {**first, ALL_CAPTIONS: kept, NUM_CAPTIONS: offered}


def with_list(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add ALL_CAPTIONS and NUM_CAPTIONS to a sample whose only caption is not in a list."""
    only = {"caption": sample.get("caption"), "reject": sample.get("caption_reject")}
    if ALL_CAPTIONS in sample or (only["caption"] is None and only["reject"] is None):
        return sample
    return {**sample, ALL_CAPTIONS: [only], NUM_CAPTIONS: 1}


def split_by_captions(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut rows into ranges [start, stop) of about MAX_BATCH_CAPTIONS captions; `counts` has one number per row."""
    start = held = 0
    for place, count in enumerate(counts):
        held += min(count, MAX_CAPTIONS)
        if held >= MAX_BATCH_CAPTIONS or place == len(counts) - 1:
            yield start, place + 1
            start, held = place + 1, 0
