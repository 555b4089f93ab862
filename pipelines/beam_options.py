"""Beam's own flags: all that are installed, and checks of the few values that Beam itself finds too late.

Beam refuses most wrong values in one sentence when it builds or submits the pipeline. The checks here are for values
with which a run would start and then fail for no visible reason, or wait.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipelines.command_line import Parser, UsageError

_WORKERS_PER_CORE = 16
_CONNECT_SECONDS = 10.0


def beam_parser() -> argparse.ArgumentParser:
    """Return a parser of the options of all installed PipelineOptions classes."""
    parser: Any = Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    waiting = [PipelineOptions]
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        if "_add_argparse_args" in cls.__dict__:
            cls._add_argparse_args(parser)
    return parser


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
            f"--direct_num_workers is {workers}, but it must be 1 to {most} on this machine, or 0 for one per core"
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
