"""Look at a few pictures before a run: phones store many of them turned, and the published code leaves them so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.clip.preprocess import orientation_of_start
from clip_transforms.parts.counts import counted
from clip_transforms.run.plan import RunPlan
from clip_transforms.shards.cut import FolderSideFile
from clip_transforms.shards.side_file import SideFile

_MOST = 32  # pictures that are looked at
_BEGINNING = 1 << 18  # bytes of each; the EXIF comes first, and may hold a thumbnail


def turned_in_run(plan: RunPlan) -> list[str]:
    """Return a note if a run is about to embed pictures as they are stored, and a viewer would turn some.

    It is for a run that begins a dataset, since the flag that turns them holds for a whole dataset.
    """
    if plan.settings.exif_orientation != "ignore" or any(planned.is_committed for planned in plan.units):
        return []
    return turned(plan.side_files)


def turned(side_files: Mapping[str, SideFile]) -> list[str]:
    """Return a note if a viewer would turn some pictures of folders on this machine.

    It looks at 32 pictures at most, spread evenly. Those elsewhere are left alone, since each would be a request.

    Args:
        side_files: name → side file, of an inventory.
    """
    looked_at = list(_orientations(side_files))
    found = sum(orientation > 1 for orientation in looked_at)
    if not found:
        return []
    are = "is" if found == 1 else "are"
    return [
        f"note: {found:,} of {counted(len(looked_at), 'picture')} looked at {are} stored turned, as EXIF says, and "
        f"{are} embedded so, as published; --exif_orientation apply turns such pictures first"
    ]


def _orientations(side_files: Mapping[str, SideFile]) -> Iterator[int]:
    """Yield the EXIF orientations of the pictures that are looked at."""
    tables = [file.table for file in side_files.values() if isinstance(file, FolderSideFile)]
    pictures = pa.chunked_array([chunk for table in tables for chunk in table["image"].chunks], pa.binary())
    places = np.unique(np.linspace(0, len(pictures) - 1, min(_MOST, len(pictures))).astype(int))
    for uri in map(os.fsdecode, pictures.take(places).to_pylist()):
        if not storage.is_local(uri):
            continue
        try:
            yield orientation_of_start(storage.read_bytes(uri, _BEGINNING))
        except OSError as error:  # embedding it will be a reject
            if storage.is_of_the_machine(error):
                raise
