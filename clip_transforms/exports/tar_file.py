"""Tars whose bytes depend on nothing but their members: no times, no owners."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from collections.abc import Sequence

from clip_transforms import storage


class TarFile:
    """A tar that is being written to a local file; use it as a context manager. Nothing appears before `commit`."""

    def __init__(self, scratch: str):
        """Open it.

        Args:
            scratch: URI of the run's temporary folder; the file lies there if it is local.
        """
        handle, self._local = tempfile.mkstemp(
            suffix=".tar", dir=storage.normalise(scratch) if storage.is_local(scratch) else None
        )
        self._file = storage.open_output(self._local, handle)
        # GNU's format holds long names, and names in UTF-8, without headers of their own.
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8")

    def add(self, members: Sequence[tuple[str, bytes]]) -> None:
        """Add (name, bytes) pairs, in their order."""
        for name, data in members:
            member = tarfile.TarInfo(name)  # regular, mode 0644; time, owner and group are 0
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))

    def commit(self, uri: str) -> None:
        """Finish it and let it appear under its final name, whole."""
        self._tar.close()
        self._file.close()
        os.chmod(self._local, 0o644)
        storage.commit_file(self._local, uri)

    def __enter__(self) -> TarFile:
        """The tar itself."""
        return self

    def __exit__(self, *_) -> None:
        """Remove what was not committed."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._local)
