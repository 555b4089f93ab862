"""Run whole commands, time them from start to end, and read their `run.json`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import DTYPES, matrix_rate

ROOT = Path(__file__).parents[1]
# The FLOP of ViT-B/32 for a picture and a caption of mean length, and the share of the matrix rate that a run usually
# reaches.
_FLOP_PER_PAIR, _REACHED = 10e9, 0.6


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of `pipelines.embed`.

    Attributes:
        seconds: the seconds from the start of the process to its end.
        speed: the field `speed` of run.json.
    """

    seconds: float
    speed: dict[str, Any]

    @property
    def rate(self) -> float:
        """Pairs per second, without start-up."""
        return self.speed["samples_per_second"]

    @property
    def whole_rate(self) -> float:
        """Pairs per second, including start-up."""
        return self.speed["samples"] / self.seconds


def seconds_of(argv: Sequence[object], environment: Mapping[str, str] | None = None, folder: Path = ROOT) -> float:
    """Run a command and return its seconds, from the start of the process to its end.

    Args:
        argv: the command line.
        environment: the environment of the command; by default this process's.
        folder: the folder to run it in; by default this checkout.
    Raises:
        RuntimeError: if the command fails; the message holds its output.
    """
    start = time.perf_counter()
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, cwd=folder, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds


def embed_argv(source: object, output: Path, model: Sequence[str]) -> list[str]:
    """Return a command line for `pipelines.embed`."""
    return [sys.executable, "-m", "pipelines.embed", "--input", str(source), "--output", str(output), *model]


def embed(source: object, output: Path, model: Sequence[str]) -> Run:
    """Run `pipelines.embed` into a new output."""
    shutil.rmtree(output, ignore_errors=True)
    seconds = seconds_of(embed_argv(source, output, model))
    return Run(seconds, json.loads((output / "run.json").read_bytes())["speed"])


def in_turn(rounds: int, **functions: Callable[[], Any]) -> dict[str, list[Any]]:
    """Call every function in turn, round after round, and return all results by name.

    Taking turns means that a slow moment of the machine slows all functions.
    """
    found: dict[str, list[Any]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(function())
    return found


def pairs_in(seconds: float) -> int:
    """Estimate, from the matrix rate, how many pairs ViT-B/32 embeds on this machine in a time; a multiple of 32."""
    fastest = max(matrix_rate(dtype) for dtype in DTYPES.values())
    if torch.cuda.is_available():
        raise RuntimeError("this machine has a GPU, whose rate is not estimated; give the number of pairs with --pairs")
    return max(64, round(_REACHED * fastest / _FLOP_PER_PAIR * seconds / 32) * 32)
