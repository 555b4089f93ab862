"""Whole commands, run and timed: what they took from start to end, and what their `run.json` says."""

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
# ViT-B/32: a picture, and a caption of the mean length; and what of the matrix rate a run is likely to reach.
_FLOP_PER_PAIR, _REACHED = 10e9, 0.6


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of `pipelines.embed`.

    Attributes:
        seconds: from the start of the process to its end.
        speed: of run.json.
    """

    seconds: float
    speed: dict[str, Any]

    @property
    def rate(self) -> float:
        """Pairs a second without start-up."""
        return self.speed["samples_per_second"]

    @property
    def whole_rate(self) -> float:
        """Pairs a second with start-up."""
        return self.speed["samples"] / self.seconds


def seconds_of(argv: Sequence[object], environment: Mapping[str, str] | None = None, folder: Path = ROOT) -> float:
    """Seconds of a command, from the start of the process to its end.

    Args:
        argv: the command.
        environment: its own; by default this process's.
        folder: that it runs in; by default this checkout.
    Raises:
        RuntimeError: if it fails, with what it said.
    """
    start = time.perf_counter()
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, cwd=folder, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds


def embed_argv(source: object, output: Path, model: Sequence[str]) -> list[str]:
    """The command line of `pipelines.embed`."""
    return [sys.executable, "-m", "pipelines.embed", "--input", str(source), "--output", str(output), *model]


def embed(source: object, output: Path, model: Sequence[str]) -> Run:
    """Run `pipelines.embed` into a new output."""
    shutil.rmtree(output, ignore_errors=True)
    seconds = seconds_of(embed_argv(source, output, model))
    return Run(seconds, json.loads((output / "run.json").read_bytes())["speed"])


def in_turn(rounds: int, **functions: Callable[[], Any]) -> dict[str, list[Any]]:
    """What every function gives in every round, one after the other: what slows the machine slows them all."""
    found: dict[str, list[Any]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(function())
    return found


def pairs_in(seconds: float) -> int:
    """About how many pairs ViT-B/32 embeds in so many seconds on this machine, by its matrix rate; a multiple of 32."""
    fastest = max(matrix_rate(dtype) for dtype in DTYPES.values())
    if torch.cuda.is_available():
        raise RuntimeError("this machine has a GPU; say with --pairs how many it shall embed")
    return max(64, round(_REACHED * fastest / _FLOP_PER_PAIR * seconds / 32) * 32)
