"""Plan a hundred thousand units, then run over them when all are done: `python -m benchmarks.many_units [UNITS]`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.parts.footers import part_uri
from clip_transforms.run.begin import begin_run
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import Unit

UNITS = 100_000
EMPTY_TAR = bytes(1024)
_LINKS = 10_000  # links to a file; file systems allow some ten thousand

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
    write_tars(root, units)
    argv = ["--input", f"{root}/tars/*.tar", "--output", f"{root}/out", "--model", "demo"]
    planned = _run([*argv, "--dry_run"])
    commit_all(root, argv)
    return {"planned": planned, "again": _run(argv)}


def write_tars(root: Path, units: int) -> None:
    """Write empty tars. Many are links to one file, which takes less disk and changes nothing for a plan."""
    (root / "tars").mkdir()
    for i in range(units):
        path = root / "tars" / f"{i:07d}.tar"
        if i % _LINKS == 0:
            first = path
            first.write_bytes(EMPTY_TAR)
        else:
            os.link(first, path)


def commit_all(root: Path, argv: list[str]) -> None:
    """Commit a part for each tar: two by the command, and the others as copies that name another shard."""
    one = root / "one"
    one.mkdir()
    tars = sorted((root / "tars").iterdir())[:2]
    _run(["--input", *map(str, tars), "--output", str(one), *argv[4:]])
    plan = plan_run(Settings((argv[1],), argv[3], ClipSpec("demo")))
    units = [planned.unit for planned in plan.units]
    first, second = units[:2]
    kinds = {kind: Path(part_uri(str(one), kind, first.part)).read_bytes() for kind in ("embeddings", "rejects")}
    for kind, data in kinds.items():
        assert _of(data, first, second) == Path(part_uri(str(one), kind, second.part)).read_bytes()
    job, folder = begin_run(plan, 1, ())
    with folder:
        for unit in units:
            for kind, data in kinds.items():
                Path(part_uri(job.output, kind, unit.part)).write_bytes(_of(data, first, unit))


def _of(data: bytes, made: Unit, unit: Unit) -> bytes:
    """Return the part of an empty unit, from that of another one whose names are as long."""
    text = {json.dumps(getattr(made, name)): json.dumps(getattr(unit, name)) for name in ("shard", "stamp")}
    for old, new in text.items():
        assert len(old) == len(new)
        data = data.replace(old.encode(), new.encode())
    return data


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
