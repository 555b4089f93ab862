"""The distribution that a worker on a cluster installs, and the tools that make installs."""

import email
import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement


def sdist(folder):
    """Build it as Beam's `--setup_file ./setup.py` does."""
    argv = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    with open(
        Path(ROOT) / "setup.py"
    ) as lock:  # it collects its files in the checkout, where another test may build too
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    (path,) = Path(folder).glob("*.tar.gz")
    return path


def test_the_sdist_holds_the_demo_checkpoint_and_every_module(tmp_path):
    with tarfile.open(sdist(tmp_path)) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    places = ("clip_transforms", "schemas", "pipelines")
    modules = {str(path.relative_to(ROOT)) for place in places for path in (Path(ROOT) / place).rglob("*.py")}
    assert len(modules) > 50
    templates = {str(path.relative_to(ROOT)) for path in (Path(ROOT) / "clip_transforms/pages/templates").iterdir()}
    assert len(templates) > 4
    assert {"clip_transforms/demo/demo.safetensors", "README.md", "LICENSE", *modules, *templates} <= names


def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def pins():
    """Package → version of constraints.txt."""
    lines = (Path(ROOT) / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if not line.startswith("#")]
    assert len({canonical(name) for name, _ in found}) == len(found)
    return {canonical(name): version for name, version in found}


def test_every_package_that_make_installs_has_a_pin(pins, tmp_path):
    with tarfile.open(sdist(tmp_path)) as tar:
        (info,) = [name for name in tar.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO")]
        metadata = email.message_from_bytes(tar.extractfile(info).read())
    wanted = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text or 'extra == "test"' in text]
    names = {canonical(re.match(r"[\w.-]+", text)[0]) for text in wanted}
    assert {"apache-beam", "mypy", "pre-commit", "pytest-xdist"} <= names
    assert names - pins.keys() == set()


def test_the_pins_fit_each_other(pins):
    """Otherwise pip refuses them in a fresh environment. A package that is installed without its dependencies may."""
    conflicts, checked = [], 0
    for name, version in pins.items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted = [Requirement(text) for text in found.requires or ()]
        for need in (need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})):
            pinned = pins.get(canonical(need.name))
            if pinned and found.version == version and name not in WITHOUT_DEPENDENCIES:
                checked += 1
                conflicts += [] if need.specifier.contains(pinned) else [f"{name} {version} needs {need}, not {pinned}"]
    assert conflicts == [] and checked > 50


def test_the_hooks_run_the_tools_of_make_lint_and_download_nothing(pins):
    config = yaml.safe_load((Path(ROOT) / ".pre-commit-config.yaml").read_text())
    (repo,) = config["repos"]
    assert repo["repo"] == "local" and all(hook["language"] == "system" for hook in repo["hooks"])
    makefile = (Path(ROOT) / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    for hook in repo["hooks"]:
        command = re.match(r"\.venv/bin/(\w+)( \w+)?", hook["entry"])
        assert command[0] in makefile and command[1] in pins


FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    for name in python ruff mypy; do cp "$0" "$3/bin/$name"; done
fi
"""
WITHOUT_DEPENDENCIES = ("open-clip-torch", "autofaiss", "embedding-reader", "clip-retrieval")  # as make installs them
EXTRAS = re.compile(r"-m pip install .*--editable '?\.(?:\[(\w+)\])?'?(?:\s|$)")


@pytest.fixture
def make(tmp_path):
    """Run targets of the Makefile in a copy, with a Python that only notes its arguments; returns them."""
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(Path(ROOT) / name, tmp_path / name)
    fake, log = tmp_path / "fake-python", tmp_path / "log"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)

    def run(*targets):
        log.write_text("")
        argv = ["make", f"PYTHON={fake}", *targets]
        done = subprocess.run(argv, cwd=tmp_path, env=os.environ | {"LOG": str(log)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    return run


def extras_of(calls):
    """The extras that calls of pip install; the demo needs none of them."""
    return [found[1] or "demo" for call in calls if (found := EXTRAS.search(call))]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
@pytest.mark.parametrize("targets", [("demo", "test", "lint"), ("test", "demo", "lint"), ("lint", "slow", "demo")])
def test_make_installs_for_each_target_what_it_needs_and_nothing_twice(targets, make):
    installed = []
    for target in targets:
        calls = make(target)
        installed += extras_of(calls)
        wanted = ["demo"] if target == "demo" and "test" not in installed else ["demo", "test"]
        assert installed == wanted, "each extra once, the demo's before the tests'"
        assert any("open_clip_torch" in call for call in calls) is ("test" in extras_of(calls))
        assert target != "demo" or "-m pipelines.demo" in calls
        assert target != "test" or "-m pytest -n 4" in calls


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_make_installs_again_after_the_pins_have_changed(make, tmp_path):
    assert extras_of(make("test")) == ["demo", "test"] and extras_of(make("test", "lint")) == []
    later = (tmp_path / ".venv" / ".test").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert extras_of(make("demo")) == ["demo"]


@pytest.mark.slow  # installs torch and Beam into a new environment, from the package index
@pytest.mark.timeout(1200)
def test_the_sdist_installs_in_a_clean_environment_and_runs_the_demo_there(tmp_path):
    archive = sdist(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=200)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    constraints = Path(ROOT) / "constraints.txt"
    subprocess.run([*install, "--constraint", constraints, archive], check=True, timeout=500)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # not this tree
    argv = [python, "-m", "pipelines.demo"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert "4 units committed" in done.stdout and "An analyst's question" in done.stdout
