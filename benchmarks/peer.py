"""Our command against clip-retrieval 2.45, same shards, same weights: `python -m benchmarks.peer --python P`.

P is a Python in which clip-retrieval and its own torchvision can be imported. Without one the benchmark says how to
install them. Both programs read the same webdataset tars and embed pictures and captions with ViT-B/32 of the same
random weights, each with its own defaults. The benchmark counts the pairs in each output and compares the embeddings.
The figure with start-up runs from the start of the process to its end. It includes clip-retrieval's own warm-up, two
passes of a batch, because its users wait for that too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.commands import Run, embed, in_turn, seconds_of
from benchmarks.inputs import photographs, random_checkpoint, write_tars
from benchmarks.machine import median_ratio, print_facts

MODEL, SHARDS = "ViT-B/32", 8  # clip-retrieval needs a shard for each of its four workers
INSTALL = (
    "--python is {python}, which cannot import clip-retrieval and torchvision ({reason}); give the Python of a venv "
    "where `pip install clip-retrieval==2.45.0 'setuptools<81'` was run"
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", default=sys.executable, help="Python with clip-retrieval and torchvision (this one)"
    )
    parser.add_argument("--pairs", type=int, default=4_000, help="pairs in each run (%(default)s)")
    parser.add_argument("--size", default="256x256", help="size of the pictures (%(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=256, help="clip-retrieval's batch size (%(default)s, its own)"
    )
    parser.add_argument("--workers", type=int, default=4, help="its num_prepro_workers (%(default)s, its own default)")
    parser.add_argument("--rounds", type=int, default=1, help="number of interleaved runs (%(default)s)")
    options = parser.parse_args(argv)
    print_facts()
    environment = dict(os.environ, PYTHONPATH="")
    try:
        name = _name_of(options.python, environment)
    except RuntimeError as error:
        print(INSTALL.format(python=options.python, reason=error))
        return
    flags = [f"--batch_size={options.batch_size}", f"--num_prepro_workers={options.workers}"]
    peer = [options.python, "-m", "clip_retrieval.cli", "inference", "--input_format=webdataset", *flags]
    measure(name, peer, environment, max(1, options.pairs // SHARDS), options.size, options.rounds)


def measure(name: str, peer: Sequence[str], environment: dict[str, str], of_each: int, size: str, rounds: int) -> None:
    """Run both programs in turn and print the ratios.

    Args:
        name: name and version of the peer.
        peer: the peer's command line, without input, weights and output.
        environment: environment variables of the peer's process.
        of_each: number of pairs in each shard.
        size: size of the pictures, such as "256x256".
        rounds: number of runs of each program.
    """
    pairs = SHARDS * of_each
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tars = write_tars(root / "tars", SHARDS, of_each, photographs(32, *map(int, size.split("x"))))
        weights = random_checkpoint(root, MODEL)
        source = f"{tars}/{{00000..{SHARDS - 1:05d}}}.tar"
        theirs = [*peer, f"--input_dataset={source}", f"--clip_model={weights}", f"--output_folder={root}/theirs"]
        found = in_turn(
            rounds,
            ours=lambda: embed(source, root / "ours", ["--model", str(weights), "--activation", "quick_gelu"]),
            theirs=lambda: _run_peer(theirs, root / "theirs", environment),
        )
        worst = _compare(root / "ours", root / "theirs", pairs)
    whole = median_ratio(*([run.seconds for run in found[who]] for who in ("theirs", "ours")))
    loop = statistics.median(a.rate / b.rate for a, b in zip(found["ours"], found["theirs"], strict=True))
    for who, runs in (("ours", found["ours"]), (name, found["theirs"])):
        rates = (statistics.median(run.whole_rate for run in runs), statistics.median(run.rate for run in runs))
        print(f"{who}: {rates[0]:.4g} pairs/s with start-up, {rates[1]:.4g} without")
    print(f"ratio {whole:.2f} with start-up, {loop:.2f} without; {pairs:,} pairs, {rounds} rounds")
    print(f"both outputs hold the same pairs; cosine of the embeddings, at worst: {worst}")


def _name_of(python: str, environment: dict[str, str]) -> str:
    """Return the peer's name and version, such as `clip-retrieval 2.45.0`.

    Raises:
        RuntimeError: if that Python cannot import clip-retrieval and torchvision; the message gives the reason.
    """
    program = (
        "import torchvision, clip_retrieval.clip_inference, importlib.metadata as m; print(m.version('clip-retrieval'))"
    )
    done = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it printed no reason"])[-1])
    return f"clip-retrieval {done.stdout.strip()}"


def _run_peer(argv: Sequence[str], output: Path, environment: dict[str, str]) -> Run:
    """Run clip-retrieval into a new output; it writes the seconds of its own loop into its statistics."""
    shutil.rmtree(output, ignore_errors=True)
    seconds = seconds_of(argv, environment, output.parent)
    stats = [json.loads(path.read_bytes()) for path in sorted((output / "stats").glob("[0-9]*.json"))]
    samples = sum(part["sample_count"] for part in stats)
    loop = sum(part["total_duration"] for part in stats)
    return Run(seconds, {"samples": samples, "samples_per_second": samples / loop})


def _compare(ours: Path, theirs: Path, pairs: int) -> str:
    """Compare both programs' embeddings pair by pair; return the worst cosine for pictures and for captions.

    Raises:
        RuntimeError: if one of the outputs does not hold all pairs.
    """
    rows = [
        row
        for path in sorted((ours / "embeddings").glob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    by_caption = {row["caption"]: row for row in rows}
    captions = [
        caption
        for path in sorted((theirs / "metadata").glob("*.parquet"))
        for caption in pq.ParquetFile(path).read(["caption"]).column("caption").to_pylist()
    ]
    if sorted(captions) != sorted(by_caption) or len(rows) != len(captions) or len(rows) != pairs:
        raise RuntimeError(
            f"of {pairs:,} pairs our output holds {len(rows):,} and clip-retrieval's holds {len(captions):,}"
        )
    found = []
    for ours_of, theirs_of in (("image", "img"), ("caption", "text")):
        a = np.array([by_caption[caption][f"{ours_of}_embedding"] for caption in captions], np.float32)
        files = sorted((theirs / f"{theirs_of}_emb").glob("*.npy"))
        b = np.concatenate([np.load(file) for file in files]).astype(np.float32)
        cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        found.append(f"{ours_of} {cosines.min():.5f}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
