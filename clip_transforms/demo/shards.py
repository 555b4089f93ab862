"""Write the demo's input: 2,000 scenes in four webdataset tars, with the flaws of real data, and two taxonomies."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from clip_transforms.demo.scenes import COLORS, SHAPES, Scene, draw_scene, encode_scene, random_scene

SHARDS, SAMPLES = 4, 500
SHAPES_TAXONOMY = {"templates": ["a photo of a {}."], "classes": list(SHAPES)}
# No caption in training was a colour alone, so whole prompts describe each class.
COLORS_TAXONOMY = {
    "classes": [{"name": color, "prompts": [f"a {color} {shape}" for shape in SHAPES]} for color in COLORS]
}


def write_demo_inputs(folder: Path) -> list[Path]:
    """Write the tars and taxonomies that are missing; leave existing files alone.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, taxonomy in (("shapes", SHAPES_TAXONOMY), ("colors", COLORS_TAXONOMY)):
        written += _write(folder / f"{name}.json", lambda t=taxonomy: json.dumps(t, indent=1).encode())
    for shard in range(SHARDS):
        written += _write(folder / f"scenes-{shard:05d}.tar", lambda s=shard: _tar(s))
    return written


def _write(path: Path, make) -> list[Path]:
    if path.exists():
        return []
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(make())
    os.replace(partial, path)
    return [path]


def _tar(shard: int) -> bytes:
    rng = np.random.default_rng([7, shard])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in range(SAMPLES):
            scene = random_scene(rng)
            for extension, data in _members(scene, row, rng).items():
                member = tarfile.TarInfo(f"{shard:02d}{row:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _members(scene: Scene, row: int, rng: np.random.Generator) -> dict[str, bytes]:
    members = {
        "jpg": encode_scene(draw_scene(scene, rng)),
        "txt": scene.caption(int(rng.integers(7))).encode(),
        "json": json.dumps({"shape": scene.shape, "color": scene.color, "background": scene.background}).encode(),
    }
    if row == 100:
        members["jpg"] = members["jpg"][: len(members["jpg"]) // 2]  # a download that broke off
    elif row == 200:
        members["txt"] = "ein grüner Kreis".encode("latin-1")  # not UTF-8
    elif row == 300:
        members["txt"] = " ".join(scene.caption(4) for _ in range(9)).encode()  # over 77 tokens
    elif row % 97 == 50:
        del members["txt"]  # a picture without a caption
    return members
