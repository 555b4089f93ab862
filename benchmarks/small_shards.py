"""Compare many small shards with one large shard: `python -m benchmarks.small_shards`.

The whole command runs on the same pairs in tars of 100 and in a single tar, using ViT-B/32 with random weights. The
benchmark prints the ratio of the runs' own rates, and of their seconds from start to end. Then the demo model, whose
forward pass takes almost no time, runs on a thousand tiny tars and on a single tar with the same pairs: the difference
is the cost of a unit beside its samples.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import Run, embed, in_turn, pairs_in
from benchmarks.inputs import model_flags, photographs, write_tars
from benchmarks.machine import median_ratio, print_facts

OF_EACH, OF_TINY = 100, 2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", help="published name, or demo (%(default)s)")
    parser.add_argument(
        "--shards", type=int, help="tars of 100 pairs; by default as many as ViT-B/32 embeds in --seconds"
    )
    parser.add_argument("--seconds", type=float, default=60, help="approximate seconds per run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of interleaved rounds (%(default)s)")
    parser.add_argument(
        "--tiny_shards", type=int, default=1_000, help="tars of 2 pairs, for the demo model (%(default)s)"
    )
    parser.add_argument(
        "--tiny_rounds", type=int, default=1, help="number of interleaved rounds with those (%(default)s)"
    )
    options = parser.parse_args(argv)
    print_facts()
    shards = options.shards or max(2, pairs_in(options.seconds) // OF_EACH)
    with tempfile.TemporaryDirectory() as folder:
        root, images = Path(folder), photographs(32, 256, 256)
        found = compare(root / "shards", shards, OF_EACH, images, model_flags(root, options.model), options.rounds)
        many, one = found["many"], found["one"]
        rate, rate_of_one = (statistics.median(run.rate for run in runs) for runs in (many, one))
        ratio = statistics.median(a.rate / b.rate for a, b in zip(many, one, strict=True))
        whole = median_ratio([run.seconds for run in one], [run.seconds for run in many])
        print(
            f"{options.model}, {shards} tars of {OF_EACH}: {rate:.4g} pairs/s, one of {shards * OF_EACH:,}: "
            f"{rate_of_one:.4g}; ratio {ratio:.3f}, of whole commands {whole:.3f}",
            flush=True,
        )
        tiny = photographs(8, 64, 64)
        found = compare(root / "tiny", options.tiny_shards, OF_TINY, tiny, ["--model", "demo"], options.tiny_rounds)
        many, one = ([run.seconds for run in found[which]] for which in ("many", "one"))
        extra = statistics.median(a - b for a, b in zip(many, one, strict=True)) / options.tiny_shards
        print(
            f"demo, {options.tiny_shards:,} tars of {OF_TINY}: {statistics.median(many):.1f} s, one of the same pairs "
            f"{statistics.median(one):.1f} s; a unit costs {1000 * extra:.1f} ms more"
        )


def compare(
    root: Path, shards: int, of_each: int, images: Sequence[bytes], model: Sequence[str], rounds: int
) -> dict[str, list[Run]]:
    """Run the command on `many` shards, and on `one` shard with the same pairs."""
    many = write_tars(root / "many", shards, of_each, images)
    one = write_tars(root / "one", 1, shards * of_each, images)
    return in_turn(
        rounds,
        many=lambda: embed(many, root / "out-many", model),
        one=lambda: embed(one, root / "out-one", model),
    )


if __name__ == "__main__":
    main()
