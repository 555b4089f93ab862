"""Refuse inputs that hold two kinds of samples, or nothing to read, with one sentence that says what to do."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Container, Iterator, Sequence

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.shards.batches import text_of
from clip_transforms.shards.inputs import Source
from clip_transforms.shards.kinds import kind_of, stem
from clip_transforms.shards.parquet_files import ParquetFiles
from clip_transforms.shards.skipping import Skipping
from clip_transforms.shards.unit import IMAGE_EXTENSIONS, PlanError, with_cure
from clip_transforms.storage import FileInfo


def refuse_two_kinds(
    name: str,
    root: str,
    pictures: Sequence[FileInfo],
    tars: Sequence[FileInfo],
    tfrecords: Sequence[FileInfo],
    parquet: ParquetFiles,
) -> None:
    """Refuse pictures beside shards, unless they lie in a folder of a shard's name and so belong to it.

    Args:
        name: name of the input.
        root: URI of the folder that was searched.
        pictures: the pictures in it.
        tars: the tars in it.
        tfrecords: the TFRecords in it.
        parquet: its Parquet files; those with images are shards.
    Raises:
        PlanError: with both counts.
    """
    if not pictures:
        return
    kinds = {"webdataset": tars, "tfrecord": tfrecords, "parquet": [file for file, _ in parquet.images]}
    there = {kind: files for kind, files in kinds.items() if files}
    stems = {stem(file.uri) for files in there.values() for file in files}
    strays = [picture for picture in pictures if not any(folder in stems for folder in _folders_above(picture, root))]
    if not strays:
        return
    shards = " and ".join(
        f"{counted(len(files), f'{kind} shard')} ({posixpath.basename(files[0].uri)}{', …' if len(files) > 1 else ''})"
        for kind, files in there.items()
    )
    what = posixpath.basename(strays[0].uri) + (", …" if len(strays) > 1 else "")
    raise PlanError(
        f"--input {name} holds {counted(len(strays), 'picture')} ({text_of(what)}) beside {text_of(shards)}; "
        f"--input_format folder takes the pictures, --input_format {' or '.join(there)} the shards, and --exclude GLOB "
        "leaves files out; to embed all, give a glob of the pictures and a glob of the shards as two inputs"
    )


def _folders_above(file: FileInfo, root: str) -> Iterator[str]:
    folder = posixpath.dirname(file.uri)
    while len(folder) > len(root):
        yield folder
        folder = posixpath.dirname(folder)


def nothing_to_read(pattern: str, sources: Sequence[Source], input_format: str, skipping: Skipping) -> PlanError:
    """Return the error for an input of which nothing can be taken."""
    listed = [file for source in sources for file in source.files]
    kept = [skipping.keep(source.files, source.root, source.pattern, source.below.skipped) for source in sources]
    if not any(files for files, _ in kept) and any(left := [skipped.describe() for _, skipped in kept]):
        return PlanError(
            f"--input {pattern} holds nothing that is not left out{next(filter(None, left))}; give such a folder as "
            "--input itself, or omit --exclude"
        )
    if not any(files for files, _ in kept) and (listed or any(source.below.skipped for source in sources)):
        return PlanError(
            f"--input {pattern} holds nothing but hidden files and folders, which are left out; give such a folder as "
            "--input itself, or rename it"
        )
    if not listed:
        return PlanError(f"--input {pattern} is an empty folder; give one with pictures, .tar or .parquet files")
    arrow = [file.uri for file in listed if kind_of(file.uri) == ".arrow"]
    if arrow:
        return _arrow_files(pattern, arrow[0], {file.uri for file in listed})
    if input_format != "auto":
        return PlanError(f"--input {pattern} holds nothing for --input_format {input_format}; omit that flag")
    pictures = ", ".join(IMAGE_EXTENSIONS)
    kinds = Counter(kind_of(file.uri) for file in listed).most_common(3)
    there = ", ".join(f"{count:,} {with_cure(kind)}" for kind, count in kinds)
    return PlanError(
        f"--input {pattern} holds no pictures ({pictures}), .tar, .tfrecord, .parquet, .csv, .tsv or .jsonl files, but "
        f"{there}; "
        "convert them, or check the path"
    )


def _arrow_files(pattern: str, uri: str, files: Container[str]) -> PlanError:
    """Return the refusal of Arrow files, with what to do about those that `save_to_disk` of Hugging Face wrote."""
    folder = posixpath.dirname(uri)
    writer, cure = "", "write their tables with pyarrow.parquet.write_table"
    if storage.join(folder, "state.json") in files:
        writer = " written by save_to_disk of Hugging Face's datasets"
        cure = f"run datasets.load_from_disk({folder!r}).to_parquet('NAME.parquet')"
    return PlanError(
        f"--input {pattern} holds Arrow files{writer} ({uri}), and these are not read; {cure}, and give the "
        "Parquet file"
    )
