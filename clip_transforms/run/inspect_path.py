"""Say what a file or folder is, by its content, whoever made it."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import tokenize

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.clip.configurations import HUGGING_FACE, OPEN_CLIP
from clip_transforms.clip.description import describe
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.clip.recognition import CheckpointError
from clip_transforms.clip.taxonomy import CLASS_NAMES
from clip_transforms.pages.page_file import is_page
from clip_transforms.run.inspect_inputs import (
    inspect_classes,
    inspect_folder,
    inspect_listing,
    inspect_parquet,
    inspect_picture,
    inspect_shard,
)
from clip_transforms.run.inspect_outputs import (
    DATASET,
    inspect_dataset,
    inspect_output,
    inspect_run,
    inspect_table,
    selected,
)
from clip_transforms.run.inspected import Inspected, InspectError, command, facts_of, size_of
from clip_transforms.run.new_output import COMMAND
from clip_transforms.shards.kinds import kind_of
from clip_transforms.shards.unit import ShardError

_START = 4_096  # bytes
_ZIP, _OLD_TORCH, _NUMPY, _PARQUET, _TAR = b"PK\x03\x04", b"\x80\x02\x8a\x0a", b"\x93NUMPY", b"PAR1", b"ustar"
_TAR_PLACE = 257
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_FAISS = (b"Ix", b"IH", b"Iw")  # plain ones, graphs and lists
_DEPTH = 3  # a part of labels lies two folders deep in a dataset


def inspect_path(place: storage.Place) -> Inspected:
    """Say what a path is, and what to do with it. No code from a file is run, and nothing is written.

    Args:
        place: a file or folder, on any fsspec file system.
    Raises:
        ValueError: an InspectError or another one, in one sentence, if there is nothing, or no command reads it.
    """
    uri = storage.normalise(storage.as_uri(place, "PATH"))
    if not storage.exists(uri):
        if name := ClipSpec(str(place)).published_name:
            raise InspectError(f"{name} is the name of a model; python -m pipelines.models --check {name} describes it")
        raise InspectError(f"{uri} does not exist; check the path")
    if storage.is_folder(uri):
        return _folder(uri)
    folder, name = posixpath.split(uri)
    owner = _owner(folder)
    if owner == folder and name.endswith((".json", "_SUCCESS")) and name != "run.json":
        return _made(owner).within(name)
    if name.lower().endswith((*_WEIGHTS, ".json")) and _has_configuration(folder):
        return _checkpoint(folder).within(name)
    try:
        found = _file(uri)
    except ShardError as error:
        raise InspectError(f"{uri} is damaged: {' '.join(str(error).split())}") from error
    return dataclasses.replace(found, further=(command("inspect", owner),)) if owner else found


def _folder(uri: str) -> Inspected:
    owner = _owner(uri)
    if owner:
        inside = uri.removeprefix(owner).lstrip("/")
        return _made(owner).within(inside) if inside else _made(owner)
    if _has_configuration(uri):
        return _checkpoint(uri)
    if storage.exists(storage.join(uri, CLASS_NAMES)):
        return inspect_classes(uri)
    if not storage.names_in(uri):
        raise InspectError(f"{uri} is an empty folder; every command over a dataset takes it for its --output")
    return inspect_folder(uri)


def _has_configuration(folder: str) -> bool:
    """Return whether a folder is a checkpoint: alone, its weights do not say everything."""
    return any(storage.exists(storage.join(folder, name)) for name in (OPEN_CLIP, HUGGING_FACE))


def _owner(folder: str) -> str:
    """Return a folder, or the next around it, that this program wrote; empty if there is none."""
    for _ in range(_DEPTH):
        if any(storage.exists(storage.join(folder, name)) for name in (DATASET, COMMAND)):
            return folder
        folder = posixpath.dirname(folder)
    return ""


def _made(folder: str) -> Inspected:
    """Describe a folder that this program wrote."""
    is_dataset = storage.exists(storage.join(folder, DATASET))
    return inspect_dataset(folder) if is_dataset else inspect_output(folder)


def _file(uri: str) -> Inspected:
    start, kind = storage.read_bytes(uri, _START), kind_of(uri)
    if not start:
        raise InspectError(f"{uri} is an empty file")
    if start[:4] == _PARQUET or kind == "parquet":
        return _parquet(uri)
    if picture_format(start) is not None:
        return inspect_picture(uri, start)
    if start.startswith(_NUMPY):
        return _matrix(uri)
    if start.startswith((_ZIP, _OLD_TORCH)) or uri.lower().endswith(_WEIGHTS):
        return _checkpoint(uri)
    if kind == "tar" or start[_TAR_PLACE : _TAR_PLACE + len(_TAR)] == _TAR:
        return inspect_shard(uri, "webdataset")
    if kind == "tfrecord":
        return inspect_shard(uri, "tfrecord")
    if is_page(start):
        return Inspected("a page that report or search wrote", facts_of(size=_size(uri)), (f"open {uri} in a browser",))
    if start.startswith(_FAISS) and uri.lower().endswith((".faiss", ".index")):
        return Inspected("a faiss index", facts_of(size=_size(uri)))
    if kind == "listing":
        return _listing(uri, start)
    if kind == "json":
        return _json(uri)
    if kind == "caption":
        return _text(uri)
    raise InspectError(
        f"{uri} is no file that a command reads; they read pictures, .tar, .tfrecord, .parquet, .csv, .tsv, .jsonl and "
        ".txt files, checkpoints, and what they wrote"
    )


def _parquet(uri: str) -> Inspected:
    try:
        return inspect_table(uri) or inspect_parquet(uri)
    except (pa.ArrowException, OSError) as error:
        if storage.is_of_the_machine(error):
            raise
        raise InspectError(f"{uri} is a damaged Parquet file: {' '.join(str(error).split())}") from error


def _checkpoint(uri: str) -> Inspected:
    try:
        checkpoint = ClipSpec(uri).recognise()
    except CheckpointError as error:
        why = str(error).removeprefix(f"--model {uri}: ").removeprefix(f"{uri}: ")
        raise InspectError(f"{uri} is no checkpoint that embed reads: {why}") from error
    what, facts = describe(checkpoint)
    argv = ["--input", "PICTURES", "--output", "out", "--model", uri]
    argv += [] if checkpoint.activation else ["--activation", "quick_gelu"]
    return Inspected(f"a checkpoint: {what}", tuple(facts), (command("embed", *argv),))


def _matrix(uri: str) -> Inspected:
    with storage.open_input(uri) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
            raise InspectError(f"{uri} is a damaged NumPy file: {error}") from error
    return Inspected("a NumPy array", facts_of(shape=" × ".join(f"{n:,}" for n in shape), dtype=dtype, size=_size(uri)))


def _listing(uri: str, start: bytes) -> Inspected:
    header = {name.strip('"\r ') for name in start.split(b"\n")[0].decode("utf-8", "replace").split(",")}
    if {"shard", "row"} <= header:
        return Inspected("a list of rows, as --selection takes it", facts_of(size=_size(uri)), (selected(uri),))
    if header & {"class", "classes"} and "key" in header:
        further = command("evaluate", "--input", "DATASET", "--output", "evaluated", "--truth", uri)
        return Inspected("the right classes of samples, as --truth takes them", facts_of(size=_size(uri)), (further,))
    return inspect_listing(uri)


def _json(uri: str) -> Inspected:
    try:
        content = json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise InspectError(f"{uri} is no JSON: {error}") from error
    if isinstance(content, dict) and "run" in content and {"command", "seconds"} & content.keys():
        return inspect_run(uri, content)
    if isinstance(content, dict) and "classes" in content:
        return inspect_classes(uri)
    return inspect_listing(uri)


def _text(uri: str) -> Inspected:
    found = inspect_classes(uri)
    what = "a text: classes for --taxonomy, or keys for --selection"
    return Inspected(what, found.facts, (*found.further, selected(uri)))


def _size(uri: str) -> str:
    return size_of(sum(info.size for info in storage.infos_of([uri])))
