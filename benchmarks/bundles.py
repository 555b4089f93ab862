"""Compare several tasks at once in one process with one after the other: `python -m benchmarks.bundles`.

Prism and Dataflow hand one process several bundles at once. One process does the tasks of a run in turn, another in
eight threads, with the demo model and a taxonomy. The benchmark prints the ratio of their seconds, of the peaks of
their memory, and of the reported rate to that of a stopwatch. With `--prism FILE`, the program that
`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0` makes, the whole command runs on Prism too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.commands import ROOT, Run, embed, in_turn
from benchmarks.inputs import photographs, write_tars
from benchmarks.machine import print_facts

PROGRAM = """
import concurrent.futures, json, re, sys, time
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.embed_shards import _EmbedTask
from clip_transforms.run.beam import Shared
from clip_transforms.run.begin import begin_run
from clip_transforms.run.embed_units import embed_run_classes
from clip_transforms.run.end import write_run
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.run.summary import RunSummary

source, output, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
taxonomy = Taxonomy.from_json("shapes", {"classes": ["a star", "a moon", "a heart"]})
job, folder = begin_run(plan_run(Settings((source,), output, ClipSpec("demo"), (taxonomy,))), 1, ())
with folder:
    classes, do_fn = embed_run_classes(job), _EmbedTask(job, Shared())
    do_fn.setup()
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda unit: list(do_fn.process((unit, unit + 1), classes)), range(job.units))
        summary = RunSummary.of_all(result for results in found for result in results)
    seconds = time.perf_counter() - start
    speed = write_run(job, summary)["speed"]
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": seconds, "peak": peak, "said": speed["samples_per_second"], "pairs": speed["samples"]}))
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tars", type=int, default=24, help="tars of 150 pairs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of interleaved rounds (%(default)s)")
    parser.add_argument("--prism", metavar="FILE", help="the program prism")
    options = parser.parse_args(argv)
    print_facts()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = write_tars(root / "in", options.tars, 150, photographs(32, 256, 256))
        found = in_turn(
            options.rounds,
            one=lambda: run_tasks(source, root, 1),
            eight=lambda: run_tasks(source, root, 8),
        )
        one, eight = found["one"], found["eight"]
        said = statistics.median(run["said"] * run["seconds"] / run["pairs"] for run in eight)
        print(
            f"eight tasks at once: {ratio(one, eight, 'seconds'):.3f} of the speed of one after the other, "
            f"{ratio(eight, one, 'peak'):.3f} of its peak memory; the rate it reports is {said:.3f} of a stopwatch's",
            flush=True,
        )
        if options.prism:
            on_prism(options.prism, source, root, options.rounds)


def run_tasks(source: object, root: Path, threads: int) -> dict[str, float]:
    """Embed in a fresh process with some threads, into a new output."""
    with tempfile.TemporaryDirectory(dir=root) as output:
        argv = [sys.executable, "-c", PROGRAM, str(source), f"{output}/out", str(threads)]
        return json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)


def ratio(above: list[dict[str, float]], below: list[dict[str, float]], name: str) -> float:
    """Return the median over the rounds of a ratio."""
    return statistics.median(a[name] / b[name] for a, b in zip(above, below, strict=True))


def on_prism(program: str, source: object, root: Path, rounds: int) -> None:
    """Run the whole command on Prism and in process, in turn."""
    (root / "shapes.txt").write_text("a star\na moon\na heart\n")
    flags = ["--model", "demo", "--taxonomy", str(root / "shapes.txt")]
    with prism(program) as (endpoint, pid):
        beams = ["--runner", "PortableRunner", "--job_endpoint", endpoint, "--environment_type", "LOOPBACK"]
        runs: dict[str, list[tuple[Run, float]]] = in_turn(
            rounds,
            here=lambda: with_cores(lambda: embed(source, root / "out-here", flags)),
            prism=lambda: with_cores(lambda: embed(source, root / "out-prism", [*flags, *beams])),
        )
        own = seconds_of_core(pid) / sum(run.seconds for run, _ in runs["prism"])
    pairs = [(*here, *there) for here, there in zip(runs["here"], runs["prism"], strict=True)]
    whole = statistics.median(here.seconds / there.seconds for here, _, there, _ in pairs)
    said = statistics.median(there.rate / here.rate for here, _, there, _ in pairs)
    core = statistics.median(there / here for _, here, _, there in pairs)
    print(
        f"on Prism: {whole:.3f} of the speed of the whole command in process; reported rate {said:.3f} of its rate; "
        f"{core:.3f} of its seconds of a core, without Prism itself, which takes {own:.2f} of a core meanwhile"
    )


def with_cores(run: Callable[[], Run]) -> tuple[Run, float]:
    """Run a command; what it returned, and the seconds of a core that it took."""
    before = os.times()
    made = run()
    after = os.times()
    return made, sum(after[2:4]) - sum(before[2:4])


def seconds_of_core(pid: int) -> float:
    """Return the seconds of a core that a process of this machine has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def prism(program: str) -> Iterator[tuple[str, int]]:
    """Run Prism's job service on loopback; its endpoint and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [program, "--job_port", str(port), "--serve_http=false", "--idle_shutdown_timeout=-1s"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield f"localhost:{port}", process.pid
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
