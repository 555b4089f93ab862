"""Beam's own flags: which there are, and the values that Beam itself would refuse late, in mid-run or never."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipelines.command_line import Parser, UsageError

_WORKERS_PER_CORE = 16
_LEAST = {
    "direct_runner_bundle_repeat": 0,
    "num_workers": 1,
    "max_num_workers": 1,
    "number_of_worker_harness_threads": 1,
    "sdk_worker_parallelism": 0,
    "job_server_timeout": 1,
}
_ENVIRONMENTS = ("DOCKER", "PROCESS", "EXTERNAL", "LOOPBACK")
_FILES = (
    "setup_file",
    "requirements_file",
    "extra_packages",
    "files_to_stage",
    "flink_job_server_jar",
    "spark_job_server_jar",
    "kafka_streams_job_server_jar",
)
_SECONDS = 10.0


def beam_parser() -> argparse.ArgumentParser:
    """All options of all installed PipelineOptions classes."""
    parser = Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    waiting = [PipelineOptions]
    while waiting:
        cls = waiting.pop()
        waiting.extend(cls.__subclasses__())
        if "_add_argparse_args" in cls.__dict__:
            cls._add_argparse_args(parser)
    return parser


def check_beam_options(options: PipelineOptions, runner: Any) -> None:
    """Refuse what can be known to fail, before anything is planned.

    Args:
        options: parsed, so that every number is one.
        runner: that was made of them.
    Raises:
        UsageError: naming the flag.
    """
    known = options.get_all_options()
    _check_numbers(known)
    for flag in _FILES:
        named = known.get(flag) or []
        for path in [named] if isinstance(named, str) else named:
            if "://" not in path and not os.path.isfile(path):
                raise UsageError(f"--{flag} {path} is no file; check the path, which is relative to {os.getcwd()}")
    setup = known.get("setup_file")
    if setup and os.path.basename(setup) not in ("setup.py", "pyproject.toml"):
        raise UsageError(f"--setup_file is {setup!r}, but it must be called setup.py or pyproject.toml; give its path")
    environment = known.get("environment_type")
    if environment and environment not in _ENVIRONMENTS and not environment.startswith("beam:env:"):
        raise UsageError(
            f"--environment_type is {environment!r}, but it must be one of {', '.join(_ENVIRONMENTS)}; for runners on "
            "this machine leave it away"
        )
    _check_environment(environment, known.get("environment_config") or "")
    if isinstance(runner, PortableRunner):
        _check_endpoint(known.get("job_endpoint"), runner)


def _check_numbers(known: dict[str, Any]) -> None:
    workers, most = known.get("direct_num_workers"), _WORKERS_PER_CORE * (os.cpu_count() or 1)
    if workers is not None and not 0 <= workers <= most:
        raise UsageError(
            f"--direct_num_workers is {workers}, but it must be 1 to {most} on this machine, or 0 for one a core"
        )
    for flag, least in _LEAST.items():
        value = known.get(flag)
        if value is not None and not (str(value).isdecimal() and int(value) >= least):
            raise UsageError(f"--{flag} is {value}, but it must be a whole number, {least} or more; or leave it away")


def _check_environment(environment: str | None, config: str) -> None:
    """Refuse a configuration in JSON that lacks what its environment needs."""
    needed = {"EXTERNAL": "url", "PROCESS": "command"}.get(environment or "")
    if not needed or not config.startswith("{"):
        return
    try:
        found = json.loads(config).get(needed)
    except ValueError as error:
        raise UsageError(f"--environment_config is {config!r}, but it must be JSON: {error}; mend it") from None
    if not found:
        raise UsageError(
            f"--environment_config is {config!r}, but for {environment} it must have {needed!r}; add what Beam's "
            "documentation says"
        )


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
        return  # for gRPC itself to resolve
    if not address:
        raise UsageError(f"--job_endpoint is {endpoint!r}, but it must be host:port; give those of the job service")
    try:
        socket.create_connection((address[1], int(address[2])), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--job_endpoint {endpoint} cannot be reached: {error}; start the job service, or check host and port"
        ) from None
