"""The tables that `evaluate` prints, made from its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.evaluation.settings import MEASURES
from clip_transforms.metrics.ranks import KS
from clip_transforms.parts.counts import counted
from clip_transforms.run.evaluate_work import PER_GROUP
from pipelines.terminal import printable

_GROUPS = 12  # the most groups of a table
_WIDTH, _GROUP_WIDTH, _NAME_WIDTH = 118, 24, 16  # characters of a line, of a group's name, of a column's
_INTERVALS = 4  # columns; with more of them, the intervals would make lines that nobody can read
_DIRECTIONS = {"image_to_caption": "image → captions", "caption_to_image": "caption → images"}
_TITLES = {
    "acc1": "top 1",
    "acc5": "top 5",
    "mean_per_class_recall": "mean recall",
    "mean_average_precision": "mean AP",
    "mean_eleven_point_precision": "mean 11-point AP",
    "mean_roc_auc": "mean ROC AUC",
}
# One text, since --quiet decides by its beginning.
_WARNING = (
    "warning: where these are groups of people, CLIP's accuracies differ between them, and the choice of classes "
    "moves\nthe differences. Its authors rule out surveillance, the recognition of faces, and any use that was not "
    "tested in\nits own context; read docs/model-card.md before you rely on a number below."
)
_NOT_SCORED = "note: no row can be scored"
Row = Mapping[str, Any]


def evaluation_lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines: what was counted, a table for each measure, and one for the groups."""
    lines = [f"evaluated in {output} (metrics.json, per_class.parquet, per_group.parquet)"]
    for name, of in (("zeroshot", _zeroshot), ("retrieval", _retrieval), ("probe", _probe)):
        if name in content:
            lines += ["", *of(content[name])]
    if "zeroshot" in content and not {"truth", "truth_column"} & content["made_by"].keys():
        lines = [line for line in lines if line != _NOT_SCORED]
        lines.append("note: no truth was given, so there are no accuracies, only the labels that each group gets")
    if "groups" in content:
        lines += ["", _WARNING, *_groups(output, content["groups"])]
        without = [found["rows"].get("without_group", 0) for name, found in content.items() if name in MEASURES]
        if any(without):
            column = content["groups"]["column"]
            lines.append(f"note: {counted(max(without), 'row')} without a {column}, in no group")
    return [line if line == _WARNING else printable(line) for line in lines]


def _zeroshot(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"zero-shot labels: {_rows(found['rows'])}"
    several = any("positives" in of for of in found["taxonomies"].values())
    if several:
        header = ["taxonomy", "classes", "mean AP", "mean 11-point AP", "mean ROC AUC"]
        keys = ("mean_average_precision", "mean_eleven_point_precision", "mean_roc_auc")
        table = [
            [name, f"{of['classes']:,}", *(_percent(of[key]) for key in keys)]
            for name, of in found["taxonomies"].items()
        ]
    elif found["rows"].get("scored"):
        header = ["taxonomy", "classes", "top 1", "95 % interval", "top 5", "mean recall"]
        table = [[name, f"{of['classes']:,}", *_accuracies(of)] for name, of in found["taxonomies"].items()]
    else:
        header, table = [], []
    yield from _table(header, table)
    if not found["rows"].get("scored"):
        yield _NOT_SCORED
    if found["unknown_truth"]:
        most = sorted(found["unknown_truth"].items(), key=lambda item: (-item[1], item[0]))
        names = ", ".join(f"{_short(name, _GROUP_WIDTH)!r} ({n:,})" for name, n in most[:3])
        more = " …" if len(most) > 3 else ""
        yield f"note: classes of the truth that a taxonomy lacks, and that are not scored: {names}{more}"
    for name, of in found["taxonomies"].items():
        if without := of.get("classes_without_samples"):
            number = of["classes"] - of["classes_with_samples"]
            shown = ", ".join(_short(name, _NAME_WIDTH) for name in without[:4]) + (" …" if number > 4 else "")
            yield f"note: {counted(number, 'class', 'classes')} of {name} without a sample, not in its means: {shown}"


def _retrieval(found: Mapping[str, Any]) -> Iterator[str]:
    rows = found["rows"]
    yield f"retrieval: {counted(rows.get('images', 0), 'image')} and {counted(rows.get('captions', 0), 'caption')}"
    header = ["", "queries", "candidates", *(f"recall@{k}" for k in KS)]
    table = [
        [
            title,
            f"{found[name]['n']:,}",
            f"{found[name]['candidates']:,}",
            *(_percent(found[name][f"recall@{k}"]) for k in KS),
        ]
        for name, title in _DIRECTIONS.items()
    ]
    yield from _table(header, table)
    if not found["image_to_caption"]["n"]:
        yield "note: no image has a caption here"
    for what, other in (("image", "caption"), ("caption", "image")):
        if number := rows.get(f"without_{other}", 0):
            yield f"note: {counted(number, what)} without {'an' if other == 'image' else 'a'} {other}: no query"
    for name, title in _DIRECTIONS.items():
        if tied := found[name]["tied"]:
            yield f"note: {title}: {tied:,} right answers tie with others, as equal captions do; the first one counts"
        few = [k for k in KS if found[name]["candidates"] < k]
        if few and found[name]["n"]:
            yield f"note: {title}: there are fewer than {few[0]} candidates, so recall@{few[0]} is 100 %"


def _probe(found: Mapping[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{found[name]:,} {name}" for name in ("train", "validation", "test"))
    yield f"linear probe: {_rows(found['rows'])}: {sizes}"
    if found["c"] is None:
        lacks = [name for name in ("train", "validation", "test") if not found[name]]
        why = f"no sample is left for {' and '.join(lacks)}" if lacks else "its training samples are all of one class"
        yield f"note: there is no probe: {why}"
        return
    header = ["classes", "C", "top 1", "95 % interval", "top 5", "mean recall"]
    yield from _table(header, [[f"{found['classes']:,}", f"{found['c']:.3g}", *_accuracies(found)]])
    if not found["converged"]:
        yield "note: the fit had not converged after 1,000 iterations, where the paper's stops too"
    if found["not_trained"]:
        shown = ", ".join(_short(name, _NAME_WIDTH) for name in found["not_trained"][:4])
        yield f"note: classes with test samples alone, whose samples count as wrong: {shown}"


def _accuracies(found: Mapping[str, Any]) -> list[str]:
    low, high = found["acc1_interval"] or (None, None)
    interval = "" if low is None else f"{_percent(low)} to {_percent(high)}"
    return [_percent(found["acc1"]), interval, _percent(found["acc5"]), _percent(found["mean_per_class_recall"])]


def _groups(output: str, groups: Mapping[str, Any]) -> Iterator[str]:
    """Yield tables of the numbers of each group, and of the labels that each group gets."""
    with storage.open_input(storage.join(output, PER_GROUP)) as file:
        rows = pq.ParquetFile(file).read(use_threads=False).to_pylist()
    tables: dict[str, list[tuple[str, Row]]] = {}
    for row in rows:
        taxonomy = row["taxonomy"]
        if row["metric"] == "label_rate":
            tables.setdefault(f"how often a group gets each label of {taxonomy}", []).append((row["class"], row))
        elif row["class"] is None:
            direction, _, metric = row["metric"].rpartition(" ")
            labels = f"zero-shot labels of {taxonomy}" if taxonomy else "linear probe"
            what = f"retrieval, {_DIRECTIONS[direction]}" if direction else labels
            tables.setdefault(what, []).append((_TITLES.get(metric, metric), row))
    if not rows:
        yield f"note: no row has a {groups['column']}, so there are no groups"
    # Without a truth there are no accuracies, and no table of them.
    tables = {title: cells for title, cells in tables.items() if any(row["n"] for _, row in cells)}
    for title, cells in sorted(tables.items(), key=lambda item: item[1][0][1]["metric"] == "label_rate"):
        yield from ("", *_by_group(title, groups["column"], cells))


def _by_group(title: str, column: str, cells: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Yield a table with a line for each group, a column for each metric or class, and the spreads below."""
    spreads = {name: row["spread"] for name, row in cells}
    of = {(row["group"], name): row for name, row in cells}
    sizes = {group: max(of[group, name]["n"] for name in spreads if (group, name) in of) for group, _ in of}
    groups = [group for group in sizes if group in sorted(sizes, key=lambda group: -sizes[group])[:_GROUPS]]
    labels = [_short(group, _GROUP_WIDTH) or '""' for group in groups]
    intervals = len(spreads) <= _INTERVALS
    columns: dict[str, list[str]] = {}
    for name in sorted(spreads, key=lambda name: -(spreads[name] or 0)):
        found = [_cell(of.get((group, name)), intervals) for group in groups]
        columns[name] = [_short(name, _NAME_WIDTH), *found, _points(spreads[name])]
    room = _WIDTH - max(map(len, [column, *labels])) - len(f"{max(sizes.values()):,}") - 6
    chosen = []
    for name, texts in columns.items():
        room -= max(map(len, texts)) + 2
        chosen += [name] if room >= 0 else []
    shown = [columns[name] for name in spreads if name in chosen]
    numbers = ["n", *(f"{sizes[group]:,}" for group in groups), ""]
    table = list(zip([column, *labels, "spread"], numbers, *shown, strict=True))
    most = f", the {len(chosen)} of {len(spreads):,} that differ most" if len(chosen) < len(spreads) else ""
    inside = ", with 95 % intervals" if intervals and any(row["low"] is not None for _, row in cells) else ""
    yield f"{title}, by {column}{most}{inside}:"
    yield from _table(table[0], table[1:])
    if left := len(sizes) - len(groups):
        yield f"note: {counted(left, 'smaller group')} in {PER_GROUP}; the spread is over all"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _cell(row: Row | None, interval: bool) -> str:
    if row is None:
        return ""
    if row["low"] is None or not interval:
        return _percent(row["value"])
    return f"{_percent(row['value'])} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def _rows(rows: Mapping[str, int]) -> str:
    """Say what became of all rows."""
    names = {
        "scored": "scored",
        "not_selected": "not selected",
        "without_embedding": "without an image embedding",
        "without_truth": "without a truth",
        "unknown_truth": "of an unknown class",
        "without_split": "in no split",
    }
    shown = [f"{rows.get(key, 0):,} {name}" for key, name in names.items() if rows.get(key) or key == "scored"]
    return f"{counted(rows.get('seen', 0), 'row')} = {' + '.join(shown)}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table: the first column to the left, the others to the right."""
    if not rows:
        return
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    for line in lines:
        others = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        yield "  ".join(["", line[0].ljust(widths[0]), *others]).rstrip()
