"""The checkpoint that made a dataset, for commands that embed something to compare with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.parts.manifest import OutputError


def checkpoint_of(output: str, made: Mapping[str, Any], model: ClipSpec | None) -> Checkpoint:
    """Return the checkpoint that made the embeddings, and refuse any other.

    Args:
        output: URI of the dataset.
        made: content of `_dataset.json`.
        model: the checkpoint, if it was moved since; otherwise None.
    Raises:
        OutputError: if it is another checkpoint.
        CheckpointError: if it is gone.
    """
    spec = model or ClipSpec(made["model"])
    spec = dataclasses.replace(spec, checkpoint_key=made["settings"].get("checkpoint_key"))
    checkpoint = dataclasses.replace(spec, activation=made["settings"]["activation"]).resolve()
    if checkpoint.sha256 != made["settings"]["model"]:
        same = spec.location == made["model"]
        how = "is another file now" if same else f"is given, but {output} was made with --model {made['model']}"
        raise OutputError(
            f"--model {spec.model} {how}: its SHA-256 is {checkpoint.sha256}, and that of the dataset's checkpoint was "
            f"{made['settings']['model']}; give the checkpoint that made the embeddings"
        )
    return checkpoint
