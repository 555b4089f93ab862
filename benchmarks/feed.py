"""Measure how fast a run feeds a model that costs (almost) nothing, without a GPU: `python -m benchmarks.feed`.

The real command runs with a stand-in in place of the two towers. `free` returns at once. `sleeping` does what a GPU
costs Python: for each batch it holds the interpreter's lock for 200 launches, and then sleeps. The rate, without
start-up, is compared with bare decoding: the same bytes to the same pixels, written plainly with Pillow and NumPy, in
one process per core, with nothing else.

With `--feeders`, processes without a model read, decode and write, and the process with the model only calls it.

`--profile` also says how many milliseconds a sample costs by stage: of a core, and of the interpreter's lock, which
only one thread of a process can hold; beside feeders it is the lock of the process with the model. It needs
`pip install py-spy`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.commands import ROOT, embed_argv, seconds_of
from benchmarks.inputs import model_flags, photographs, samples, write_folder, write_parquet, write_tars
from benchmarks.machine import print_facts
from clip_transforms.workers.machine import cores

DISTINCT, SHARDS, ROW_GROUP = 32, 16, 1_000
SIDE = 224
RATE = 10_000  # pictures/s of the sleeping model
SAMPLES_A_SECOND = 500  # of py-spy
# It is imported by every Python process that finds it on its path: the command, and its processes.
STAND_IN = f"""
import importlib.util, os, sys, time

def stand_in(model_class):
    import torch
    def rows(self, inputs, on_device=False):
        found = torch.zeros(len(inputs), self.embed_dim)
        found[:, 0] = 1
        if os.environ["FEED_MODEL"] == "sleeping":
            for _ in range(200):
                found.add_(0)
            time.sleep(len(inputs) / {RATE})
        return found
    model_class.embed_images = model_class.embed_tokens = rows

class Watch:
    def find_spec(self, name, path, target=None):
        if name != "clip_transforms.clip.model":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), stand_in(module.ClipModel))
        return spec

sys.meta_path.insert(0, Watch())
"""
# The stage of a stack is that of its innermost function in one of these places.
STAGES = {
    "clip_transforms/shards/": "read",
    "clip_transforms/clip/preprocess.py": "decode",
    "clip_transforms/clip/decoders.py": "decode",
    "clip_transforms/clip/tokenizer.py": "tokenize",
    "sitecustomize.py": "model",
    "clip_transforms/engine/decode.py": "hand over",
    "clip_transforms/engine/ahead.py": "hand over",
    "clip_transforms/engine/far_model.py": "hand over",
    "clip_transforms/run/child_process.py": "hand over",
    "clip_transforms/engine/": "rows",
    "clip_transforms/parts/": "write",
    "clip_transforms/run/": "other",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="pairs of the smallest pictures (%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["64x64", "256x256", "640x480"], help="sizes (%(default)s)")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="formats (%(default)s)")
    parser.add_argument("--models", nargs="+", default=["free", "sleeping"], choices=["free", "sleeping"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1], help="--processes (%(default)s)")
    parser.add_argument("--feeders", nargs="+", type=int, default=[0, cores()], help="--feeders (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of interleaved rounds (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="measure the stages too, with py-spy")
    parser.add_argument("--model", default="ViT-B/32", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    print_facts()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "sitecustomize.py").write_text(STAND_IN)
        flags = model_flags(root, options.model)
        for size in options.sizes:
            count = max(options.samples * 64 * 64 // area_of(size), options.samples // 4, 8 * SHARDS)
            count -= count % SHARDS
            images = photographs(DISTINCT, *map(int, size.split("x")))
            for name in options.formats:
                source = FORMATS[name](root / f"{name}-{size}", count, images)
                ways = itertools.product(options.processes, options.feeders, options.models)
                for processes, feeders, model in ways:
                    run = Feed(root, source, [*flags, "--processes", str(processes)], model, feeders, count)
                    line = compare(run, images, count, options.rounds)
                    print(f"{size}, {name}, {processes} × {model}, {feeders} feeders: {line}", flush=True)
                    if options.profile:
                        print("\n".join(f"    {text}" for text in run.profile()), flush=True)


def area_of(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height


def _tars(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_tars(path, SHARDS, count // SHARDS, images)


def _parquet(path: Path, count: int, images: Sequence[bytes]) -> Path:
    path.mkdir()
    for shard in range(SHARDS):
        rows = samples(count // SHARDS, images, first=shard * (count // SHARDS))
        write_parquet(path / f"{shard}.parquet", rows, ROW_GROUP)
    return path


def _folder(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_folder(path, samples(count, images))


FORMATS: dict[str, Callable[[Path, int, Sequence[bytes]], Path]] = {
    "tar": _tars,
    "Parquet": _parquet,
    "folder": _folder,
}


class Feed:
    """The command over one input with one stand-in."""

    def __init__(self, root: Path, source: Path, flags: Sequence[str], model: str, feeders: int, count: int):
        self.root, self.feeders, self.count = root, feeders, count
        flags = [*flags, "--feeders", str(feeders)]
        self.argv = [*embed_argv(source, root / "out", flags), "--overwrite"]
        path = os.pathsep.join(filter(None, [str(root), str(ROOT), os.environ.get("PYTHONPATH")]))
        self.environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": path, "FEED_MODEL": model}

    def rate(self) -> float:
        """Run it, and return samples/s without start-up."""
        seconds_of(["rm", "-rf", self.root / "out"])
        seconds_of(self.argv, self.environment)
        speed = json.loads((self.root / "out" / "run.json").read_bytes())["speed"]
        if speed["samples"] != self.count:
            raise RuntimeError(f"{speed['samples']:,} of {self.count:,} samples came through")
        return speed["samples_per_second"]

    def profile(self) -> list[str]:
        """Run it twice under py-spy; a line for cores and one for the lock, in milliseconds a sample by stage."""
        lines = []
        below = [] if self.feeders else ["--subprocesses"]  # --processes has its models there
        for name, flags in (("core", ["--subprocesses"]), ("lock", ["--gil", *below])):
            seconds_of(["rm", "-rf", self.root / "out"])
            stacks = self.root / "stacks.txt"
            spy = ["py-spy", "record", "--full-filenames", "--format", "raw", "--nonblocking"]
            spy += ["--rate", str(SAMPLES_A_SECOND), "--output", str(stacks), *flags, "--"]
            subprocess.run([*spy, *self.argv], env=self.environment, cwd=ROOT, check=True, capture_output=True)
            of_stage: Counter[str] = Counter()
            for line in stacks.read_text().splitlines():
                stack, _, seen = line.rpartition(" ")
                of_stage[stage_of(stack)] += int(seen)
            of_stage.pop("", None)
            each = {stage: 1000 * seen / SAMPLES_A_SECOND / self.count for stage, seen in of_stage.most_common()}
            shown = ", ".join(f"{stage} {value:.3f}" for stage, value in each.items() if value >= 0.001)
            lines.append(f"ms of the {name} a sample: {sum(each.values()):.3f} = {shown}")
        return lines


def stage_of(stack: str) -> str:
    """Return the stage of a stack as py-spy writes it, outermost function first; empty for what is no stage's."""
    if "load_embedder" in stack or not any(place in stack for place in ("embed_units", "engine/", "child_process")):
        return ""  # start-up and the end of the run
    for frame in reversed(stack.split(";")):
        for place, stage in STAGES.items():
            if place in frame:
                return stage
    return "other"


def compare(run: Feed, images: Sequence[bytes], count: int, rounds: int) -> str:
    """Return the rate of a run, and its ratio to that of bare decoding."""
    rates = [(run.rate(), bare_rate(images, count)) for _ in range(rounds)]
    ours, bare = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    return f"{ours:,.0f} samples/s, bare decoding {bare:,.0f}, ratio {ratio:.2f}"


def bare_rate(images: Sequence[bytes], count: int) -> float:
    """Return the pictures/s of all cores that only decode, a process each."""
    with concurrent.futures.ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        each = [pool.submit(_decode, images, count // cores()) for _ in range(cores())]
        return sum(one.result() for one in each)


def _decode(images: Sequence[bytes], count: int) -> float:
    _plainly(images[0])
    start = time.perf_counter()
    for place in range(count):
        _plainly(images[place % len(images)])
    return count / (time.perf_counter() - start)


def _plainly(data: bytes) -> np.ndarray:
    """Return a picture's pixels for the model; uint8 [3, SIDE, SIDE]. It is square or lies across."""
    image = Image.open(io.BytesIO(data))
    width = SIDE * image.width // image.height
    image = image.resize((width, SIDE), Image.Resampling.BICUBIC)
    left = round((width - SIDE) / 2)
    image = image.crop((left, 0, left + SIDE, SIDE)).convert("RGB")
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


if __name__ == "__main__":
    main()
