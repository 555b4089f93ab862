"""The distribution that a worker on a cluster installs, and the tools that make installs."""

import email
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT


def sdist(folder):
    """Build it as Beam's `--setup_file ./setup.py` does."""
    argv = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
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
    assert {"clip_transforms/demo/demo.safetensors", "README.md", "LICENSE", *modules} <= names


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


def test_the_hooks_run_the_tools_of_make_lint_and_download_nothing(pins):
    config = yaml.safe_load((Path(ROOT) / ".pre-commit-config.yaml").read_text())
    (repo,) = config["repos"]
    assert repo["repo"] == "local" and all(hook["language"] == "system" for hook in repo["hooks"])
    makefile = (Path(ROOT) / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    for hook in repo["hooks"]:
        command = re.match(r"\.venv/bin/(\w+)( \w+)?", hook["entry"])
        assert command[0] in makefile and command[1] in pins


@pytest.mark.slow  # installs torch and Beam into a new environment, from the package index
@pytest.mark.timeout(1200)
def test_the_sdist_installs_in_a_clean_environment_and_runs_the_demo_there(tmp_path):
    archive = sdist(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=200)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "torch==2.13.0"], check=True, timeout=500)
    constraints = Path(ROOT) / "constraints.txt"
    subprocess.run([*install, "--constraint", constraints, f"{archive}[demo]"], check=True, timeout=500)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # not this tree
    argv = [python, "-m", "pipelines.demo"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert "4 units committed" in done.stdout and "An analyst's question" in done.stdout
