"""Beam's own flags: all that are installed, those that do nothing here, and checks of values that Beam finds too late.

Beam refuses most wrong values in one sentence when it builds or submits the pipeline. The checks here are for values
with which a run would start and then fail for no visible reason, or wait.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    PipelineOptions,
    ProfilingOptions,
    SetupOptions,
    StandardOptions,
    StreamingOptions,
    TypeOptions,
)
from apache_beam.runners.portability.portable_runner import PortableRunner

from clip_transforms.parts.counts import counted
from pipelines.command_line import Parser, UsageError

_WORKERS_PER_CORE = 16
_CONNECT_SECONDS = 10.0
# Options that FnApiRunner, or the construction of a pipeline, reads (Beam 2.77): whole classes, and single options of
# the other classes. SetupOptions say what workers need to have installed, which on this machine is the case already.
_USED_CLASSES = (SetupOptions, StreamingOptions, TypeOptions)
_USED_OPTIONS: dict[type[PipelineOptions], set[str]] = {
    StandardOptions: {"runner", "auto_unique_labels"},
    DirectOptions: {
        *("direct_num_workers", "direct_running_mode", "direct_runner_bundle_repeat"),
        *("direct_embed_docker_python", "direct_test_splits"),
    },
    DebugOptions: {"experiments"},
    ProfilingOptions: {"profile_cpu", "profile_memory", "profile_location", "profile_sample_rate"},
}


def beam_parser() -> argparse.ArgumentParser:
    """Return a parser of the options of all installed PipelineOptions classes."""
    return _parser_of(_option_classes())


def flags_without_effect() -> set[str]:
    """Return the flags of Beam's that do nothing with a runner that works on this machine.

    Options of classes that are not Beam's own are never among them: whoever installed them knows what they do.
    """
    flags: set[str] = set()
    for cls in _option_classes():
        if cls.__module__.startswith("apache_beam.") and cls not in _USED_CLASSES:
            used = _USED_OPTIONS.get(cls, set())
            unused = [action for action in _parser_of([cls])._actions if action.dest not in used]
            flags.update(flag for action in unused for flag in action.option_strings)
    return flags


def _option_classes() -> list[type[PipelineOptions]]:
    """Return the installed PipelineOptions classes that define options themselves."""
    found, waiting = [], [PipelineOptions]
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        if "_add_argparse_args" in cls.__dict__:
            found.append(cls)
    return found


def _parser_of(classes: Sequence[type[PipelineOptions]]) -> argparse.ArgumentParser:
    parser: Any = Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for cls in classes:
        cls._add_argparse_args(parser)
    return parser


def check_runner(name: str | None) -> None:
    """Refuse a runner that is known to lose data.

    Args:
        name: value of `--runner`; None for the default.
    Raises:
        UsageError: naming the reason and the way out.
    """
    if (name or "").rpartition(".")[2].lower() == "daskrunner":
        raise UsageError(
            f"--runner is {name}, but Beam's DaskRunner drops elements and outputs without an error, so a run would "
            "not be whole; omit --runner and let each Dask task do a share with --units, or take another runner"
        )


def check_beam_options(options: PipelineOptions, runner: Any) -> None:
    """Refuse values that are certain to fail, before anything is planned.

    Args:
        options: the parsed options; their numbers are numbers.
        runner: the runner that was made from them.
    Raises:
        UsageError: naming the flag.
    """
    known = options.get_all_options()
    _check_workers(known.get("direct_num_workers"))
    _check_setup_file(known.get("setup_file"))
    if isinstance(runner, PortableRunner):
        _check_endpoint(known.get("job_endpoint"), runner)


def _check_workers(workers: int | None) -> None:
    """Refuse a number that Beam would take: it starts as many processes as it is told, and fails with fewer than 0."""
    most = _WORKERS_PER_CORE * (os.cpu_count() or 1)
    if workers is not None and not 0 <= workers <= most:
        raise UsageError(
            f"--direct_num_workers is {workers}, but it must be 1 to {most} ({_WORKERS_PER_CORE} for each of the "
            f"{counted(os.cpu_count() or 1, 'core')} of this machine), or 0 for one per core"
        )


def _check_setup_file(path: str | None) -> None:
    if not path:
        return
    if "://" not in path and not os.path.isfile(path):
        raise UsageError(
            f"--setup_file is {path!r}, but there is no such file; check the path, which is relative to {os.getcwd()}"
        )
    if os.path.basename(path) not in ("setup.py", "pyproject.toml"):
        raise UsageError(f"--setup_file is {path!r}, but it must be called setup.py or pyproject.toml; give its path")


def _check_endpoint(endpoint: str | None, runner: PortableRunner) -> None:
    """Refuse a portable runner without a job service, or with one that does not answer."""
    if not endpoint:
        if type(runner).default_job_server is PortableRunner.default_job_server:
            raise UsageError(
                "--job_endpoint is missing: PortableRunner sends the job to a service; give its host:port, or another "
                "--runner"
            )
        return
    address = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d+)", endpoint)
    if endpoint == "embed" or "://" in endpoint or endpoint.startswith(("dns:", "unix:", "ipv4:", "ipv6:")):
        return  # gRPC itself resolves these
    if not address:
        raise UsageError(f"--job_endpoint is {endpoint!r}, but it must be host:port; give those of the job service")
    try:
        socket.create_connection((address[1], int(address[2])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--job_endpoint is {endpoint}, but it cannot be reached: {error}; start the job service, or check host "
            "and port"
        ) from None
