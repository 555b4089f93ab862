"""The folder of its own that a verb writes: whose it is, what of it is there already, and when it is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset, check_labels
from clip_transforms.parts.footers import part_names, part_stamps, read_digests
from clip_transforms.parts.manifest import OutputError, clear_success, write_json
from clip_transforms.parts.shard_name import folder_around
from clip_transforms.run.run_folder import RunFolder
from schemas.provenance import FORMAT_VERSION, check_format

COMMAND, WORK = "_command.json", "_work"
_DERIVED = ("digest", "classes", "fingerprint")  # what a command finds in the dataset
NO_SETTINGS = ("format", "verb", "dataset", *_DERIVED, "writes")  # what else a command's file holds
_CHANGED = "the dataset has changed"


@dataclasses.dataclass(frozen=True)
class NewOutput:
    """An output folder of a verb over a dataset. `of` makes one and refuses what cannot be used.

    `_command.json` says from the first moment what the folder is made of and how, so that the same command goes on
    where it was killed, and another one is refused. `_SUCCESS` appears last.

    Attributes:
        uri: URI of the folder.
        command: content of `_command.json`: the verb, its settings, and the dataset with a digest over all its parts.
        record: name of the file that tells the outcome, such as `selection.json`.
        folders: names of the folders that the verb fills.
        files: names of the files that it writes beside the record.
        overwrite: whether what another command made may be replaced.
        files: names of other files that the verb writes.
        replaces: what differs between that command and this one; empty if there is none.
    """

    uri: str
    command: Mapping[str, Any]
    record: str
    folders: tuple[str, ...]
    overwrite: bool
    files: tuple[str, ...] = ()
    replaces: str = ""

    @classmethod
    def of(
        cls, output: storage.Place, dataset: Dataset, command: Mapping[str, Any], overwrite: bool, **names: Any
    ) -> NewOutput:
        """Look at a place that a verb shall write to.

        Args:
            output: a new or empty folder, or one of the same command.
            dataset: the dataset that is read.
            command: the verb under `verb`, and the settings that decide what it writes, as JSON values.
            overwrite: whether what another command made may be replaced.
            **names: `record`, `folders` and `files`, as the attributes.
        Raises:
            OutputError: if the folder lies in the dataset or around it, holds something else, or is another command's.
        """
        uri = storage.normalise(storage.as_uri(output, "output"))
        source = {"dataset": dataset.uri, "fingerprint": dataset.fingerprint, "digest": digest_of(dataset.digests)}
        writes = [names["record"], *names["folders"], *names.get("files", ())]
        content = json.loads(json.dumps({"format": FORMAT_VERSION, **command, **source, "writes": writes}))
        new = cls(uri, content, overwrite=storage.as_setting(overwrite, "overwrite", "bool"), **names)
        flags = ("selection", "test")  # they name selections, which may be folders
        read_too = [(f"--{flag}", given["selection"]) for flag in flags for given in command.get(flag, ())]
        for what, read in (("the dataset", dataset.uri), *read_too):
            if f"{uri}/".startswith(f"{read}/") or f"{read}/".startswith(f"{uri}/"):
                raise OutputError(f"--output {uri} and {what} {read} lie in each other; give a folder outside of it")
        if folder := folder_around(uri, dataset.shards.values()):
            raise OutputError(f"--output {uri} lies in {folder}, which was embedded; give a folder outside of it")
        made = new._made()
        new._check(made)
        storage.check_writable(uri)
        return dataclasses.replace(new, replaces="" if made is None else new._difference(made))

    @property
    def settings(self) -> dict[str, str]:
        """What was asked for: name of a setting → its value, as a message shows it."""
        return {name: _given(self.command, name) for name in self.command if name not in NO_SETTINGS}

    def has_begun(self) -> bool:
        """Whether the same command has begun here, so that it would go on."""
        return self._made() == self.command

    def _made(self) -> dict[str, Any] | None:
        """Read `_command.json`; None in a new or empty folder."""
        place = storage.join(self.uri, COMMAND)
        if storage.exists(place):
            try:
                made = json.loads(storage.read_bytes(place))
            except (ValueError, RecursionError):
                made = None
            if not isinstance(made, dict) or not {"verb", "digest"} <= made.keys():
                raise OutputError(f"{place} is damaged; remove the folder, or give another --output")
            check_format(made, place)
            return made
        if storage.exists(self.uri) and not storage.is_folder(self.uri):
            raise OutputError(f"--output {self.uri} is a file, but it must be a folder, new or of the same command")
        if others := sorted(name for name in storage.names_in(self.uri) if name != "_temporary"):
            raise OutputError(f"--output {self.uri} holds something else ({others[0]}); give an empty or a new folder")
        return None

    def _check(self, made: Mapping[str, Any] | None) -> None:
        """Refuse the folder of another command."""
        if made is None or made == self.command or self.overwrite:
            return
        cure = "give another --output, or --overwrite to replace what is there"
        if (difference := self._difference(made)) == _CHANGED:
            raise OutputError(f"{self.command['dataset']} has changed since --output {self.uri} was made; {cure}")
        raise OutputError(f"--output {self.uri} was made by another command: {difference}; {cure}")

    def _difference(self, made: Mapping[str, Any]) -> str:
        """Return how another command differs; empty if it is the same."""
        changed = [name for name in {**made, **self.command} if made.get(name) != self.command.get(name)]
        if changed and set(changed) <= {"digest", "classes"}:
            return _CHANGED
        others = [name for name in changed if name not in (*_DERIVED, "writes")]
        return ", ".join(f"{name} was {_given(made, name)}, now {_given(self.command, name)}" for name in others)

    def finished(self, parts: Collection[str] = (), folder: str = "") -> Mapping[str, Any] | None:
        """Return the content of the record if the same command has made everything; otherwise None.

        If that command was killed while it removed its work, the rest of it goes now.

        Args:
            parts: names of the parts that must be there, without extension.
            folder: the folder that holds them.
        """
        if self._made() != self.command or not storage.exists(storage.join(self.uri, "_SUCCESS")):
            return None
        if parts and not set(parts) <= part_names(self.uri, folder):
            return None
        if (content := _record(storage.join(self.uri, self.record))) is not None:
            storage.remove(storage.join(self.uri, WORK))
        return content

    def begin(self, folder: RunFolder) -> None:
        """Make the folder ready: what another command made goes, what the same one made stays.

        Args:
            folder: the run's temporary folder.
        Raises:
            OutputError: if another command has begun here in the meantime, or is at work here still.
        """
        scratch = folder.uri
        made = self._made()
        self._check(made)
        if made not in (None, self.command) and folder.others_live():
            raise OutputError(
                f"--output {self.uri} is being written by another command; wait for its end, or give another --output"
            )
        clear_success(self.uri)
        if made != self.command:
            for name in {*((made or {}).get("writes", ())), *self.command["writes"], WORK}:
                storage.remove(storage.join(self.uri, name))
            write_json(storage.join(self.uri, COMMAND), self.command, scratch)  # last: until then the old one holds
        for name in self.folders:
            storage.make_folder(storage.join(self.uri, name))

    def finish(self, content: Mapping[str, Any], scratch: str) -> Mapping[str, Any]:
        """Write the record and `_SUCCESS`, and return the record's content.

        The work goes last: until `_SUCCESS` is there, the same command needs it to go on.
        """
        write_json(storage.join(self.uri, self.record), content, scratch)
        storage.write_bytes(storage.join(self.uri, "_SUCCESS"), b"", scratch)
        storage.remove(storage.join(self.uri, WORK))
        return content


def _record(uri: str) -> Mapping[str, Any] | None:
    """Read a record; None if it is gone or damaged, so that it is made again."""
    try:
        content = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def digest_of(digests: Mapping[str, str]) -> str:
    """Return one digest of part → digest, 64 hex digits. Another row anywhere in a dataset gives another."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def has_changed(dataset: str, digest: str, classes: Mapping[str, str]) -> bool:
    """Return whether a dataset is another one than when a command began: two states must not become one output.

    Args:
        dataset: URI of the dataset.
        digest: `digest_of` its parts as they were.
        classes: taxonomy whose labels are read → digest of its classes as they were.
    Raises:
        DatasetError: if labels are missing now.
    """
    parts = dict(sorted(part_stamps(dataset, "embeddings").items()))
    digests = read_digests(dataset, "embeddings", parts)
    now = {part: digests.get(part) or "" for part in parts}
    return digest_of(now) != digest or check_labels(dataset, now, tuple(classes)) != classes


def _given(command: Mapping[str, Any], name: str) -> str:
    if name == "selection" and name in command:
        return " ".join(given["selection"] for given in command[name])
    return repr(command[name]) if name in command else "not given"
