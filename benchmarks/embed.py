"""Compare whole runs with their ceiling and bound, by picture size: `python -m benchmarks.embed`.

The command runs on tars of JPEGs with captions, using ViT-B/32 with random weights. The ceiling is the rate of one
process on decoded batches. The bound is the share of the ceiling that remains when decoding uses the same cores. The
run measures both and writes them to `run.json`. The rate with start-up is samples / seconds of the whole command.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.commands import Run, embed, in_turn, pairs_in
from benchmarks.inputs import model_flags, photographs, write_tars
from benchmarks.machine import print_facts

DISTINCT = 32  # distinct pictures, which repeat in turn


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", help="published name, or demo (%(default)s)")
    parser.add_argument(
        "--sizes", nargs="+", default=["256x256", "640x480", "1920x1080"], help="sizes of the pictures (%(default)s)"
    )
    parser.add_argument("--pairs", type=int, help="pairs per run; by default as many as ViT-B/32 embeds in --seconds")
    parser.add_argument("--seconds", type=float, default=40, help="approximate seconds per run (%(default)s)")
    parser.add_argument("--shards", type=int, default=4, help="number of tars (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of interleaved rounds (%(default)s)")
    options = parser.parse_args(argv)
    print_facts()
    of_each = max(1, (options.pairs or pairs_in(options.seconds)) // options.shards)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = model_flags(root, options.model)
        runs = {}
        for size in options.sizes:
            images = photographs(DISTINCT, *map(int, size.split("x")))
            tars = write_tars(root / size, options.shards, of_each, images)
            runs[size] = functools.partial(embed, tars, root / f"out-{size}", model)
        print(f"{options.model}, {options.shards * of_each:,} pairs in {options.shards} tars, {options.rounds} rounds")
        for size, found in in_turn(options.rounds, **runs).items():
            print(f"{size}: {report(found)}", flush=True)


def report(runs: Sequence[Run]) -> str:
    """Describe the medians over all runs with one picture size."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    line = f"{median(lambda run: run.rate):.4g} pairs/s, {median(lambda run: run.whole_rate):.4g} with start-up"
    if any("ceiling" not in run.speed for run in runs):
        return f"{line}; too few batches for a ceiling"
    ceiling, of_ceiling, bound = (
        median(lambda run, name=name: run.speed[name]) for name in ("ceiling", "fraction_of_ceiling", "bound")
    )
    whole = median(lambda run: run.whole_rate / run.speed["ceiling"])
    of_bound = median(lambda run: run.speed["fraction_of_ceiling"] / run.speed["bound"])
    return (
        f"{line}; of the ceiling ({ceiling:.4g}) {of_ceiling:.3f}, with start-up {whole:.3f}; bound {bound:.3f}, "
        f"of the bound {of_bound:.3f}; bottleneck {runs[-1].speed['bottleneck']}"
    )


if __name__ == "__main__":
    main()
