"""`_dataset.json`, `run.json`, `runs/<run>.json` and `_SUCCESS`: what a dataset says of itself as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.fingerprint import Fields, fingerprint


class OutputError(ValueError):
    """An output that cannot be written to, in one sentence."""


def read_dataset_fields(output: str) -> Fields | None:
    """The fingerprint's fields of the dataset in `output`; None if there is no dataset.

    Raises:
        OutputError: if `output` is a file, or holds something else.
    """
    uri = storage.join(output, "_dataset.json")
    if storage.exists(uri):
        storage.check_writable(output)
        try:
            return json.loads(storage.read_bytes(uri))["settings"]
        except (ValueError, KeyError, TypeError):
            raise OutputError(
                f"{uri} is damaged; if the parts beside it are yours, remove them and start anew"
            ) from None
    if storage.exists(output) and not storage.is_folder(output):
        raise OutputError(f"--output {output} is a file, but it must be a folder, new or of an earlier run")
    storage.check_writable(output)
    others = [name for name in storage.names_in(output) if name not in ("_temporary",)]
    if others:
        raise OutputError(
            f"--output {output} holds something else ({sorted(others)[0]}); give an empty or a new folder"
        )
    return None


def write_dataset(output: str, fields: Fields, model: str) -> None:
    """Begin a dataset, or let it continue under another fingerprint.

    Args:
        output: URI of the dataset.
        fields: of the fingerprint.
        model: where the checkpoint was found, for later commands; it decides nothing.
    """
    content = {"fingerprint": fingerprint(fields), "settings": dict(fields), "model": model}
    write_json(storage.join(output, "_dataset.json"), content)


def read_dataset(output: str) -> dict[str, Any]:
    """`_dataset.json`: `fingerprint`, `settings` and `model`, as `write_dataset` wrote them.

    Raises:
        OutputError: if there is no dataset.
    """
    try:
        return json.loads(storage.read_bytes(storage.join(output, "_dataset.json")))
    except (FileNotFoundError, NotADirectoryError):
        raise OutputError(f"{output} is no dataset of this program: it has no _dataset.json; check the path") from None


def write_json(uri: str, content: Mapping[str, Any]) -> None:
    """Replace a small JSON file whole."""
    storage.write_bytes(uri, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_run(output: str) -> dict[str, Any]:
    """`run.json`: the dataset as it stands, and the last run's counts."""
    return json.loads(storage.read_bytes(storage.join(output, "run.json")))


def finish_run(output: str, run: str, content: Mapping[str, Any], success: bool) -> None:
    """Write what a finished run leaves: its own small file, `run.json`, and `_SUCCESS` if it was complete."""
    write_json(storage.join(output, "runs", f"{run}.json"), content)
    write_json(storage.join(output, "run.json"), content)
    if success:
        storage.write_bytes(storage.join(output, "_SUCCESS"), b"")


def clear_success(output: str) -> None:
    """Before the first part of a run changes the dataset."""
    storage.remove(storage.join(output, "_SUCCESS"))
