"""Let clients of S3 read times quickly: botocore's own way takes two thirds of the time of a long listing."""

from __future__ import annotations

import datetime
from typing import Any

from fsspec import AbstractFileSystem


def read_times_quickly(fs: AbstractFileSystem) -> None:
    """Give an s3fs file system that has not connected yet a session with a quick parser of times."""
    if getattr(fs, "session", fs) is not None:  # another file system, or one with a session
        return
    from aiobotocore.session import AioSession

    fs.session = AioSession(**fs.kwargs)
    fs.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)


def _time(value: Any) -> datetime.datetime:
    """Read a time as botocore does: `2026-01-31T23:59:59.000Z` here, and other forms by botocore itself."""
    if isinstance(value, str) and value.endswith("Z") and value[10:11] == "T":
        try:
            return datetime.datetime.fromisoformat(f"{value[:-1]}+00:00")
        except ValueError:
            return _botocores(value)
    return _botocores(value)


def _botocores(value: Any) -> datetime.datetime:
    from botocore.utils import parse_timestamp

    return parse_timestamp(value)
