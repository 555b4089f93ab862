"""The files that describe a whole dataset: `_dataset.json`, `run.json`, `runs/<run>.json` and `_SUCCESS`."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.fingerprint import Fields, fingerprint
from schemas.provenance import FormatError, check_format


class OutputError(ValueError):
    """An output that cannot be used, in one sentence."""


def read_dataset(output: str) -> dict[str, Any] | None:
    """Read `_dataset.json` (`fingerprint`, `settings`, `model`, `taxonomies`); None if `output` is new or empty.

    Raises:
        FormatError: if a newer version of this program wrote it.
        OutputError: if `output` is a file, holds something else, has an unprintable name, or is damaged.
    """
    if not output.isprintable():  # bytes that are not UTF-8 arrive as lone surrogates, which none of our files can hold
        raise OutputError(f"--output {output!r} has characters in its name that cannot be printed; rename it")
    uri = storage.join(output, "_dataset.json")
    if storage.exists(uri):
        try:
            content = json.loads(storage.read_bytes(uri))
            if isinstance(content["settings"], dict) and content["settings"] and isinstance(content["model"], str):
                check_format(content, uri)
                return {"taxonomies": {}, **content}
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise OutputError(f"{uri} is damaged; if the parts beside it are yours, remove them and start anew")
    if storage.exists(output) and not storage.is_folder(output):
        raise OutputError(f"--output {output} is a file, but it must be a folder, new or of an earlier run")
    others = [name for name in storage.names_in(output) if name != "_temporary"]
    if others and storage.exists(uri):
        return read_dataset(output)  # another run has just begun
    if others:
        raise OutputError(
            f"--output {output} holds something else ({sorted(others)[0]}); give an empty or a new folder"
        )
    return None


def existing_dataset(dataset: str) -> dict[str, Any]:
    """Read `_dataset.json` where there must be one.

    Raises:
        OutputError: if there is no dataset.
    """
    made = read_dataset(dataset) if storage.exists(storage.join(dataset, "_dataset.json")) else None
    if made is None:
        raise OutputError(
            f"{dataset} is not a dataset of this program: it has no _dataset.json; give a folder that "
            "python -m pipelines.embed wrote"
        )
    return made


def write_dataset(output: str, fields: Fields, model: str, taxonomies: Mapping[str, str], scratch: str) -> None:
    """Write `_dataset.json`, for a new dataset or with another fingerprint or more taxonomies.

    Args:
        output: URI of the dataset.
        fields: the fields of the fingerprint.
        model: name or location of the checkpoint, for later commands; it decides nothing.
        taxonomies: name → digest of all taxonomies that the dataset was labelled with.
        scratch: URI of the run's temporary folder.
    """
    content = {
        "fingerprint": fingerprint(fields),
        "settings": dict(fields),
        "model": model,
        "taxonomies": dict(sorted(taxonomies.items())),
    }
    write_json(storage.join(output, "_dataset.json"), content, scratch)


def check_taxonomies(output: str, made: Mapping[str, Any] | None, digests: Mapping[str, str]) -> None:
    """Refuse a taxonomy whose name stands for other classes in the dataset.

    Raises:
        OutputError: naming the taxonomy.
    """
    for name, digest in digests.items():
        if made and made["taxonomies"].get(name, digest) != digest:
            raise OutputError(
                f"--taxonomy {name} has other classes, prompts or templates than the one of that name in {output}; "
                "rename the file, or give --overwrite to label everything anew"
            )


def make_folders(output: str, kinds: Sequence[str]) -> None:
    """Make the folders of a dataset, if the file system has folders.

    Args:
        output: URI of the dataset.
        kinds: kinds of parts that not every dataset has, such as `labels/animals`.
    """
    for name in ("embeddings", "rejects", "taxonomies", "runs", *kinds):
        storage.make_folder(storage.join(output, name))


def write_json(uri: str, content: Mapping[str, Any], scratch: str) -> None:
    """Replace a small JSON file as a whole. It is prepared in the run's temporary folder."""
    storage.write_bytes(uri, json.dumps(content, indent=1).encode() + b"\n", scratch)


def read_run(output: str, run: str = "") -> dict[str, Any]:
    """Read `run.json`, or the file of the run with this id."""
    return json.loads(storage.read_bytes(storage.join(output, *(["runs", f"{run}.json"] if run else ["run.json"]))))


def finish_run(output: str, run: str, content: Mapping[str, Any], success: bool | None, scratch: str) -> None:
    """Write what a finished run leaves: its own small file, `run.json`, and `_SUCCESS` if the dataset is complete.

    Args:
        output: URI of the dataset.
        run: the run's id.
        content: content of `run.json`.
        success: whether the dataset is complete; None leaves `_SUCCESS` to the other runs that share the units, since
            one of them may have written it a moment ago.
        scratch: URI of the run's temporary folder.
    """
    write_json(storage.join(output, "runs", f"{run}.json"), content, scratch)
    write_json(storage.join(output, "run.json"), content, scratch)
    if success:
        storage.write_bytes(storage.join(output, "_SUCCESS"), b"", scratch)
    elif success is not None:
        clear_success(output)


def finish_labels(output: str, content: Mapping[str, Any], complete: bool, scratch: str) -> dict[str, Any]:
    """Write what a finished run of labels leaves: its own small file, which it returns, and `_SUCCESS`.

    Args:
        output: URI of the dataset.
        content: what was labelled, and `seconds`.
        complete: whether the dataset was complete before, so that it is again.
        scratch: URI of the run's temporary folder, which has the run's id for a name.
    """
    run = posixpath.basename(scratch)
    full = {"run": run, **content, "seconds": round(content["seconds"], 3)}
    write_json(storage.join(output, "runs", f"{run}.json"), full, scratch)
    if complete:
        storage.write_bytes(storage.join(output, "_SUCCESS"), b"", scratch)
    return full


def clear_success(output: str) -> None:
    """Remove `_SUCCESS`, before the first part of a run changes the dataset."""
    storage.remove(storage.join(output, "_SUCCESS"))
