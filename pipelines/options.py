"""Command lines: our own flags, then Beam's, and one sentence about a flag that is neither."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.parts.counts import counted
from clip_transforms.run.places import MOST_A_GPU
from clip_transforms.run.plan import RunPlan
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import ReaderOptions
from clip_transforms.workers.machine import cores, gpus_for, has_nvidia, torch_is_cpu_only
from clip_transforms.workers.runner import in_process, is_direct, is_direct_runner, workers_of
from pipelines.beam_options import beam_parser, flags_without_effect
from pipelines.command_line import Parser, UsageError, meant_instead, nearest
from pipelines.terminal import be_quiet

_Record = TypeVar("_Record", Settings, ReaderOptions, ClipSpec)
_REQUIRED = (
    ("--model", "model", "; ViT-B/32 is the usual model, and demo is a small one that comes with this package"),
    ("--input", "inputs", "; see --help"),
    ("--output", "output", "; see --help"),
)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, PipelineOptions]:
    """Split a command line into our options and Beam's. `--quiet` takes effect here.

    Raises:
        UsageError: if a flag is unknown to both, which Beam itself would drop silently, or if it is Beam's and does
            nothing with the runner.
    """
    argv = list(argv)
    own, behind = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    options, rest = parser.parse_known_args(own)
    be_quiet(vars(options).pop("quiet", False))
    ours = {flag for action in parser._actions for flag in action.option_strings}
    idle = flags_without_effect() if _is_direct([*rest, *behind]) else set()
    _refuse_idle(rest, idle, ours)
    beams = beam_parser()
    _, unknown = beams.parse_known_args(rest)
    beams.parse_known_args(behind)  # check Beam's flags there too: for a wrong value Beam would exit with its usage
    if unknown:
        if not unknown[0].startswith("-"):
            raise UsageError(f"{unknown[0]!r} has no flag before it; write --input {unknown[0]} to read it")
        flag = unknown[0].split("=")[0]
        others = {flag for action in beams._actions for flag in action.option_strings} - idle
        hint = meant_instead(flag, ours) or nearest(flag, {*ours, *others})
        hint += "" if not hint else " " if hint.endswith("?") else "; "
        raise UsageError(
            f"{flag} is not a flag of this command or of Beam; {hint}--help lists ours; to pass a flag on unchecked, "
            "put it after --"
        )
    return options, PipelineOptions([*rest, *behind])


def _is_direct(argv: Sequence[str]) -> bool:
    """Return whether a command line names, or leaves to the default, a runner that works on this machine."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runner")
    return is_direct_runner(parser.parse_known_args(argv)[0].runner)


def _refuse_idle(argv: Sequence[str], idle: Collection[str], ours: Collection[str]) -> None:
    """Refuse flags of Beam's that the runner would ignore: whoever gave one meant something."""
    for flag in [word.split("=")[0] for word in argv]:
        if flag in idle:
            hint = meant_instead(flag, ours) or "omit it, or name that runner with --runner"
            raise UsageError(f"{flag} is a flag of Beam's other runners and does nothing with this one; {hint}")


def warnings_of(plan: RunPlan, options: PipelineOptions) -> list[str]:
    """Return one line for each common mistake that is not an error."""
    lines, device = [], plan.settings.model.device
    workers = max(workers_of(options), plan.settings.processes)
    if in_process(options):
        if warning := too_many_processes(len(plan.places.gpus), gpus_for(device), cores()):
            lines.append(warning)
    if len(plan.pending) == 1 and workers > 1:
        lines.append(
            f"warning: there is one unit for {workers} workers, so one of them does all the work; split the input: a "
            "tar is one unit, and Parquet is cut into units at row groups, which should have at most 10,000 rows"
        )
    if device == "auto" and is_direct(options) and has_nvidia() and torch_is_cpu_only():
        lines.append("warning: this machine has an NVIDIA device, but torch is built without CUDA, so the CPU is used")
    return lines


def too_many_processes(processes: int, gpus: Sequence[str], machine_cores: int) -> str | None:
    """Return a warning if more processes are to embed than the machine has room for, else None."""
    most = MOST_A_GPU * len(gpus) or machine_cores
    if processes <= most:
        return None
    room = f"{MOST_A_GPU} for each GPU" if gpus else f"the {counted(machine_cores, 'core')} of this machine"
    return (
        f"warning: {processes} processes are more than {room}, so they take turns and only need more memory; give "
        f"--processes {most} or fewer, or omit the flag"
    )


def embed_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of a run for a parsed command line.

    Raises:
        ValueError: naming the first wrong setting in one sentence.
    """
    for flag, dest, hint in _REQUIRED:
        if not getattr(options, dest):
            raise UsageError(f"{flag} is missing{hint}")
    reader = _fill(ReaderOptions, vars(options))
    values = vars(options) | {"taxonomies": [Taxonomy.load(uri) for uri in options.taxonomies], "reader": reader}
    values |= {"model": _fill(ClipSpec, values)}
    return _fill(Settings, values)


def _fill(cls: type[_Record], values: Mapping[str, Any]) -> _Record:
    """Build a record from the values named like its fields; lists become tuples."""
    names = [field.name for field in dataclasses.fields(cls) if field.name in values]
    found: dict[str, Any] = {name: tuple(v) if isinstance(v := values[name], list) else v for name in names}
    return cls(**found)
