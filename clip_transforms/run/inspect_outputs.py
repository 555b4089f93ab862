"""Say what a folder of ours is: a dataset, or what a verb made of one; and what the files in it are."""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.counts import add, counted
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import part_stamps, read_footer, read_footers, taxonomy_names
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.parts.shard_name import sources_of
from clip_transforms.run.inspected import Inspected, InspectError, command, facts_of, fates, settings_of, size_of, some
from clip_transforms.run.new_output import COMMAND, NO_SETTINGS, digest_of
from schemas.evaluation import per_class_schema, per_group_schema
from schemas.groups import groups_schema
from schemas.left_out import left_out_schema
from schemas.provenance import Footer, check_format
from schemas.rejects import rejects_schema
from schemas.results import results_schema
from schemas.selection import selection_schema

DATASET = "_dataset.json"
# Verb → what it writes, and the name of its record.
_MADE = {
    "filter": ("a selection", "selection.json"),
    "deduplicate": ("a selection without duplicates", "selection.json"),
    "search": ("the results of a search", "search.json"),
    "index": ("an index for searches", "index.json"),
    "evaluate": ("an evaluation", "metrics.json"),
    "export": ("an export", "export.json"),
}
_TABLES = {
    "the results of a search": results_schema,
    "groups of duplicates": groups_schema,
    "the numbers of each class of an evaluation": per_class_schema,
    "the numbers of each group of an evaluation": per_group_schema,
    "the rows that an export left out": left_out_schema,
}


def inspect_dataset(uri: str) -> Inspected:
    """Describe the folder of a dataset.

    Raises:
        ValueError: if it is damaged or of a newer format.
    """
    made = existing_dataset(uri)
    parts = dict(sorted(part_stamps(uri, "embeddings").items()))
    footers = read_footers(uri, "embeddings", parts)
    run = _json(storage.join(uri, "run.json"))
    counts = add(footer["counts"] for footer in footers.values())
    shards = set(sources_of(footer["shard"] for footer in footers.values()).values())
    complete, state = _state_of_dataset(uri, len(parts) - len(footers), run)
    precisions = {_precision(footer) for footer in footers.values()} - {""}
    taxonomies = sorted(taxonomy_names(uri))
    facts = facts_of(
        made_by=", ".join([f"embed with {made['model']}", *sorted(precisions)]),
        rows=f"{counts['rows']:,} in {counted(len(parts), 'part')}",
        **fates(counts),
        shards=some(sorted(shards), 3),
        labels=some(taxonomies) or "none",
        size=size_of(sum(info.size for info in storage.list_below(uri))),
        state=state,
    )
    if not complete:
        again = run.get("command") or []
        return Inspected("a dataset", facts, (shlex.join(again) or "the same embed command again goes on",))
    further = [command("browse", "--input", uri), command("report", "--input", uri)]
    further += [command("filter", "--input", uri, "--output", f"{uri}-kept", "--top_fraction", "0.3")]
    return Inspected("a dataset", facts, tuple(further))


def _precision(footer: Footer) -> str:
    """Return `bf16 on cpu`; empty if a part does not say it."""
    provenance = footer.get("provenance", {})
    return (
        f"{provenance['precision']} on {provenance['device']}" if {"precision", "device"} <= provenance.keys() else ""
    )


def _state_of_dataset(uri: str, damaged: int, run: Mapping[str, Any]) -> tuple[bool, str]:
    if damaged:
        return False, f"{counted(damaged, 'part')} cannot be read; the same command makes them anew"
    if storage.exists(storage.join(uri, "_SUCCESS")):
        return True, "complete"
    problems = run.get("problems") or ["a run was killed, or is at work"]
    return False, f"not complete: {problems[0]}"


def inspect_output(uri: str) -> Inspected:
    """Describe a folder that a verb made of a dataset.

    Raises:
        ValueError: if it is damaged or of a newer format.
    """
    place = storage.join(uri, COMMAND)
    made = _json(place)
    if made.get("verb") not in _MADE or not isinstance(made.get("dataset"), str):
        raise InspectError(f"{place} is damaged, so nobody can tell what the folder is; make it again")
    check_format(made, place)
    verb, dataset = made["verb"], made["dataset"]
    what, name = _MADE[verb]
    record = _json(storage.join(uri, name))
    complete = bool(record) and storage.exists(storage.join(uri, "_SUCCESS"))
    settings = {key: value for key, value in made.items() if key not in NO_SETTINGS}
    facts = facts_of(
        made_by=f"{verb}" + (f": {settings_of(settings)}" if settings else ""),
        dataset=f"{dataset}{_difference(dataset, made.get('digest'))}",
        **{"found" if verb == "evaluate" else "rows": _rows(verb, record) if complete else ""},
        size=size_of(sum(info.size for info in storage.list_below(uri))),
        state="complete" if complete else "not complete: the command was killed, or is at work; the same one goes on",
    )
    return Inspected(what, facts, _next(verb, uri, dataset, made) if complete else ())


def _difference(dataset: str, digest: object) -> str:
    """Return what has become of the dataset since."""
    if not storage.exists(storage.join(dataset, DATASET)):
        return " (not there any more)"
    try:
        return "" if digest_of(Dataset.open(dataset).digests) == digest else " (changed since: make this again)"
    except ValueError:
        return " (it cannot be read now)"


def _rows(verb: str, record: Mapping[str, Any]) -> str:
    counts = record.get("counts", {})
    if verb in ("filter", "deduplicate"):
        return f"{counts.get('kept', 0):,} kept of {counts.get('seen', 0):,}"
    if verb == "export":
        left = sum(counts.get("left_out", {}).values())
        return f"{counts.get('exported', 0):,} exported" + (f", {left:,} left out" if left else "")
    if verb == "search":
        return f"{counts.get('results', 0):,} found for {counted(counts.get('queries', 0), 'query', 'queries')}"
    if verb == "index":
        recall = ", ".join(f"recall@10 {of} {value:.4f}" for of, value in record.get("recall_at_10", {}).items())
        return f"{record.get('rows', 0):,} ({record.get('kind')})" + (f", {recall}" if recall else "")
    scores = [
        f"{name} top 1 {of['acc1']:.3f}" for name, of in _accuracies(record).items() if of.get("acc1") is not None
    ]
    return some(scores) or some(name for name in ("retrieval", "probe", "zeroshot") if name in record)


def _accuracies(record: Mapping[str, Any]) -> dict[str, Any]:
    probe = {"probe": record["probe"]} if "probe" in record else {}
    return record.get("zeroshot", {}).get("taxonomies", {}) | probe


def _next(verb: str, uri: str, dataset: str, made: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the command that makes use of an output."""
    if verb == "filter":
        return (
            command(
                "export", "--input", dataset, "--selection", uri, "--output", f"{uri}-chosen", "--as", "webdataset"
            ),
        )
    if verb == "deduplicate":
        return (command("report", "--input", dataset, "--selection", uri, "--duplicates", uri),)
    if verb == "index":
        return (command("search", "--input", dataset, "--index", uri, "--text", "a photo of a cat"),)
    if verb == "export" and made.get("as") == "webdataset":
        tars = storage.join(uri, "shards", "*.tar")
        return (command("embed", "--input", tars, "--output", f"{uri}-out", "--model", "ViT-B/32"),)
    if verb == "evaluate":
        return (f"its numbers are in {storage.join(uri, _MADE[verb][1])}",)
    return (f"duckdb -c {_quoted(storage.join(uri, 'results.parquet'))}",) if verb == "search" else ()


def _quoted(table: str) -> str:
    """Return a query of a file for a shell; double quotes where they do, since they are easier to read."""
    query = f"FROM '{table}'"
    return shlex.quote(query) if set(table) & set("'\"\\$`!") else f'"{query}"'


def inspect_part(uri: str, footer: Footer, schema: pa.Schema, rows: int) -> Inspected:
    """Describe a Parquet file that has a footer of ours."""
    if "maker" in footer:
        return Inspected(
            "the class embeddings of a taxonomy", facts_of(classes=f"{rows:,}", columns=some(schema.names))
        )
    names, kind = {*schema.names}, "a part of the embeddings"
    if "taxonomy" in footer:
        kind = f"a part of the labels {footer['taxonomy']}"
    elif names == {*rejects_schema().names}:
        kind = "a part of the rejects"
    elif "caption_index" in names:
        kind = "a part of all captions"
    elif names <= {*selection_schema().names, "by"}:
        kind = "a part of a selection"
    made = [f"d {footer['provenance']['embed_dim']}" if footer.get("provenance") else "", _precision(footer)]
    facts = facts_of(
        rows=f"{rows:,}",
        shard=footer.get("shard", ""),
        model=", ".join(filter(None, made)),
        fingerprint=footer.get("fingerprint", ""),
    )
    return Inspected(kind, facts)


def inspect_table(uri: str) -> Inspected | None:
    """Describe a Parquet file that this program wrote; None if it is another one's.

    Raises:
        FormatError: if a newer version of this program wrote it.
    """
    footer = read_footer(uri)
    with storage.open_input(uri) as file:
        parquet = pq.ParquetFile(file)
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    if footer is not None:
        return inspect_part(uri, footer, schema, rows)
    names = {*schema.names}
    for what, of in _TABLES.items():
        if names == {*of().names}:
            return Inspected(what, facts_of(rows=f"{rows:,}", columns=some(schema.names)))
    if {"shard", "row"} <= names:
        facts = facts_of(rows=f"{rows:,}", columns=some(schema.names))
        return Inspected("a list of rows, as --selection takes it", facts, (selected(uri),))
    return None


def selected(uri: str) -> str:
    """Return the command that uses a list of rows or keys."""
    return command("export", "--input", "DATASET", "--selection", uri, "--output", "chosen", "--as", "webdataset")


def inspect_run(uri: str, content: Mapping[str, Any]) -> Inspected:
    """Describe `run.json`, or the file of one run."""
    counts, labelled = content.get("input", {}), content.get("labelled", {})
    facts = facts_of(
        command=shlex.join(map(str, content.get("command") or [])),
        started=content.get("started", ""),
        finished=content.get("finished", ""),
        **({"samples": f"{counts['samples']:,}", **fates(counts)} if "samples" in counts else {}),
        labelled=f"{labelled.get('rows', 0):,} rows with {some(content.get('taxonomies', {}))}" if labelled else "",
        state="complete" if content.get("complete") else some(content.get("problems", [])),
    )
    folder = posixpath.dirname(uri)
    folder = posixpath.dirname(folder) if posixpath.basename(folder) == "runs" else folder
    return Inspected("the record of a run", facts, (command("inspect", folder),))


def _json(uri: str) -> dict[str, Any]:
    """Read a JSON object; empty if there is none, or it is damaged."""
    try:
        content = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    except (ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}
