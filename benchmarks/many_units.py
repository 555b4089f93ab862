"""Plan a hundred thousand units, then run over them when all are done: `python -m benchmarks.many_units [UNITS]`."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.parts.footers import part_uri, read_footer
from clip_transforms.parts.manifest import make_folders
from clip_transforms.parts.writer import PartSettings, UnitWriter
from clip_transforms.run.begin import begin_run
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import Unit
from schemas.embeddings import embeddings_schema

UNITS = 100_000
EMPTY_TAR = bytes(1024)

# Runs in a process of its own and prints the command's seconds and megabytes, and the kilobytes of the runner's graph.
MEASURED = """
import json, re, sys, time
start = time.perf_counter()
import apache_beam as beam
from pipelines import embed
graph = []
run = beam.Pipeline.run
def sized(self, *args, **kwargs):
    graph.append(self.to_runner_api().ByteSize() / 1e3)
    return run(self, *args, **kwargs)
beam.Pipeline.run = sized
code = embed.main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time()}
print(json.dumps({"code": code, **seconds, "megabytes": peak, "graph": graph}))
"""


def measure(root: Path, units: int) -> dict[str, dict[str, Any]]:
    """Plan `units` empty tars, commit a part for each, and run the command again on the complete dataset.

    Returns:
        `planned` and `again`, each with `code`, `seconds` and `cpu_seconds` (including imports), the peak `megabytes`,
        and `graph` in kilobytes.
    """
    tars = root / "tars"
    tars.mkdir()
    for i in range(units):
        (tars / f"{i:06d}.tar").write_bytes(EMPTY_TAR)
    argv = ["--input", f"{tars}/*.tar", "--output", f"{root}/out", "--model", "demo"]
    planned = _run([*argv, "--dry_run"])
    commit_all(root, argv)
    return {"planned": planned, "again": _run(argv)}


def commit_all(root: Path, argv: list[str]) -> None:
    """Commit a part for each tar with the real writer, but without an fsync for each."""
    one = root / "one"
    one.mkdir()
    first = next((root / "tars").iterdir())
    _run(["--input", str(first), "--output", str(one), *argv[4:]])
    settings = Settings((argv[1],), argv[3], ClipSpec("demo"))
    plan = plan_run(settings)
    units = [planned.unit for planned in plan.units]
    (part,) = (unit.part for unit in units if unit.uri == str(first))
    made = read_footer(part_uri(str(one), "embeddings", part))
    footer = {"fingerprint": made["fingerprint"], "provenance": made["provenance"]}
    job, folder = begin_run(plan, 1, ())
    with folder:
        make_folders(job.output, [])
        with multiprocessing.get_context("fork").Pool() as pool:
            todo = ((PartSettings(job.output, job.folder, embeddings_schema(), footer), unit) for unit in units)
            for _ in pool.imap_unordered(_commit, todo, 1000):
                pass


def _commit(task: tuple[PartSettings, Unit]) -> None:
    os.fsync = lambda handle: None  # in this process only, which has no other purpose
    settings, unit = task
    with UnitWriter(settings, unit.part, {"shard": unit.shard, "stamp": unit.stamp}) as writer:
        writer.commit(0, {})


def _run(argv: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", MEASURED, *argv], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    units = int(sys.argv[1]) if len(sys.argv) > 1 else UNITS
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = measure(Path(folder), units)
        planned, again = found["planned"], found["again"]
        print(f"{os.cpu_count()} cores; {units:,} empty tars, demo model, no taxonomy; times include imports")
        for what, run in (("planned", planned), ("found complete again", again)):
            cost = f"{run['cpu_seconds']:.1f} s of a core, {run['megabytes']:,.0f} MB at the peak"
            print(f"{what} in {run['seconds']:.1f} s: {cost}")
        print(f"graph: {again['graph'][0]:,.0f} kB; the whole benchmark took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
