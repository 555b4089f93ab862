"""The recipe for Ray in docs/runners.md, on a real Ray of this machine; a worker is killed in mid-run."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, files_of, make_tar
from servers import wait_for

from clip_transforms import ClipSpec, embed_shards

pytestmark = [
    pytest.mark.slow,  # Ray starts in ten seconds, and its workers import everything anew
    pytest.mark.timeout(300),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray: pip install ray"),
]


def descendants(pid):
    """Processes that a process has started, directly or not → their command lines."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines]
    found, parents = {}, {pid}
    while parents:
        children = {int(row[0]): row[2] for row in rows if int(row[1]) in parents}
        found |= children
        parents = set(children)
    return found


def shares_of(run):
    """The processes that do a share at this moment."""
    return [pid for pid, args in descendants(run.pid).items() if args.startswith("ray::share")]


def recipe(folder):
    """The program on the page, with the model of the tests, no GPU, and servers on loopback alone."""
    (program,) = re.findall(r"```python\n(import ray\n.*?)```", Path(ROOT, "docs/runners.md").read_text(), re.DOTALL)
    init = 'ray.init(address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")'
    for shown, here in {
        "ray.init()": init,
        "num_gpus=1": "num_cpus=1",
        "ViT-B/32": "demo",
        "s3://bucket/web": str(folder / "web"),
        "s3://bucket/out": str(folder / "slow"),
    }.items():
        assert shown in program
        program = program.replace(shown, here)
    return program


def test_a_share_is_done_again_when_its_worker_is_killed(slow_commits, tmp_path):
    (tmp_path / "web").mkdir()
    for i in range(12):
        make_tar(tmp_path / "web" / f"{i:02d}.tar", 5, first=5 * i)
    embed_shards(tmp_path / "web" / "*.tar", tmp_path / "one", ClipSpec("demo"))
    (tmp_path / "recipe.py").write_text(recipe(tmp_path))
    out = tmp_path / "slow"
    env = slow_commits | {"PYTHONPATH": f"{slow_commits['PYTHONPATH']}:{ROOT}", "RAY_USAGE_STATS_ENABLED": "0"}
    argv = [sys.executable, tmp_path / "recipe.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(argv, env=env, cwd=tmp_path, text=True, **pipes) as run:
        started = {}
        try:
            wait_for(lambda: [*out.glob("embeddings/*.parquet")], 120)
            started = descendants(run.pid)
            os.kill(shares_of(run)[0], signal.SIGKILL)
            said, _ = run.communicate(timeout=150)
        finally:
            for pid in {**started, **descendants(run.pid)} if run.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.kill()
    assert run.returncode == 0, said
    ended = re.findall(r"^share (\d): \d units committed, problems: \[\]$", said, re.MULTILINE)
    assert sorted(ended) == ["0", "1", "2", "3"], said
    assert files_of(out) == files_of(tmp_path / "one") and (out / "_SUCCESS").exists()
    assert not (out / "_temporary").exists()
    assert json.loads((out / "run.json").read_text())["dataset"]["samples"] == 60
