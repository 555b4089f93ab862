"""Filter ten million rows in a thousand parts: `python -m benchmarks.filter [ROWS]`.

The benchmark prints two ratios of seconds, of alternating runs in one process: the exact top fraction (finding the cut,
writing nothing) to DuckDB's exact quantile of the same column, and `--where` with one taxonomy to DuckDB's join of the
same files, which writes the same rows. Seconds on the clock come first, then those of a core, which other processes
disturb less. It also prints the peak memory of finding the cut in a tenth of the rows and in all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np

from benchmarks.datasets import write_rows
from clip_transforms import filter_embeddings
from clip_transforms.filter_embeddings import FilterEmbeddings, plan_filter
from clip_transforms.run.over_parts import do_step

ROWS_A_PART, FRACTION, ROUNDS = 10_000, 0.3, 5
WHERE = "clip_score >= 0.25 and animals.label = 'cat' and animals.probability > 0.5"
JOIN = """COPY (
    SELECT e.key, shard, row
    FROM '{0}/embeddings/*.parquet' e JOIN '{0}/labels/animals/*.parquet' animals USING (shard, row)
    WHERE clip_score >= 0.25::FLOAT AND animals.label = 'cat' AND animals.probability > 0.5::FLOAT
) TO '{1}' (FORMAT parquet, COMPRESSION zstd)"""
QUANTILE = "SELECT quantile_disc(clip_score, {1}) FROM '{0}/embeddings/*.parquet'"
PEAK = """
import re, sys
from benchmarks.filter import find_cut
find_cut(sys.argv[1])
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main() -> None:
    parts = int(sys.argv[1]) // ROWS_A_PART if sys.argv[1:] else 1000
    with tempfile.TemporaryDirectory() as folder:
        whole, tenth = (_write(Path(folder) / str(n), n) for n in (parts, max(1, parts // 10)))
        print(f"{os.cpu_count()} cores; {parts * ROWS_A_PART:,} rows in {parts:,} parts", flush=True)
        cut = _ratio(lambda: find_cut(whole), lambda: duckdb.execute(QUANTILE.format(whole, 1 - FRACTION)).fetchall())
        print(f"top fraction over DuckDB's quantile: {cut}", flush=True)
        where = _ratio(
            lambda: _where(whole, folder), lambda: duckdb.execute(JOIN.format(whole, f"{folder}/kept.parquet"))
        )
        print(f"--where, selection written, over DuckDB's join: {where}", flush=True)
        few, many = (_peak(path) for path in (tenth, whole))
        print(f"peak memory: {few:,.0f} MB for a tenth of the rows, {many:,.0f} MB for all, ratio {many / few:.3f}")


def find_cut(dataset: str) -> dict:
    """Find the cut of the top fraction, as `filter` does before it writes."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = plan_filter(dataset, f"{scratch}/kept", top_fraction=FRACTION)
        run = FilterEmbeddings.of(plan).begin_run(plan, detached=False)
        state = None
        for step in run.work.steps[:-1]:
            state = do_step(step, state)
        return state.described(np.dtype(np.float32))


def _where(dataset: str, folder: str) -> int:
    # A new output in each round: ext4 makes files slowly in the seconds after many were removed.
    return filter_embeddings(dataset, tempfile.mkdtemp(dir=folder), where=WHERE)["counts"]["kept"]


def _ratio(ours: Callable, theirs: Callable) -> str:
    """Time both in turns; the seconds and the median of their ratios, on the clock and of a core."""
    times = np.array([[_seconds(ours), _seconds(theirs)] for _ in range(ROUNDS)])
    found = zip(*np.median(times, 0), np.median(times[:, 0] / times[:, 1], 0), strict=True)
    clock, core = (f"{a:.2f} s against {b:.2f} s, {ratio:.2f}" for a, b, ratio in found)
    return f"{clock}; of a core {core}"


def _seconds(work: Callable) -> tuple[float, float]:
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _write(folder: Path, parts: int) -> str:
    rng = np.random.default_rng(0)

    def scores() -> np.ndarray:
        return rng.normal(0.25, 0.06, ROWS_A_PART).astype(np.float32)

    labels = [
        {"label": rng.choice(["cat", "dog"], ROWS_A_PART).tolist(), "probability": rng.random(ROWS_A_PART)}
        for _ in range(parts)
    ]
    return write_rows(folder, [{"clip_score": scores()} for _ in range(parts)], {"animals": labels})


def _peak(dataset: str) -> float:
    command = [sys.executable, "-c", PEAK, dataset]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
