"""The distribution: what a worker on a cluster installs."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT


def sdist(folder):
    """Build it as Beam's `--setup_file ./setup.py` does."""
    argv = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    (path,) = Path(folder).glob("*.tar.gz")
    return path


def test_the_sdist_holds_the_demo_checkpoint_and_all_packages(tmp_path):
    with tarfile.open(sdist(tmp_path)) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for name in ("clip_transforms/demo/demo.safetensors", "schemas/embeddings.py", "pipelines/embed.py", "LICENSE"):
        assert name in names


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
