"""Expand the arguments of --input to paths and globs, and find the files that these name."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from clip_transforms import storage
from clip_transforms.shards.braces import expand_braces
from clip_transforms.shards.kinds import by_kind
from clip_transforms.shards.skipping import Skipping, names_service_folders
from clip_transforms.shards.unit import PlanError
from clip_transforms.storage import FileInfo

_MANY = 100  # from so many named files of one remote folder on, listing the folder is quicker


@dataclasses.dataclass(frozen=True)
class Source:
    """Files that are looked at together.

    Attributes:
        pattern: the input that named the files, or the first of several.
        name: the name of the source in the line that says what was found.
        root: URI of the folder that the keys are relative to.
        files: the files, sorted.
        is_folder: whether the input is the folder `root` itself.
        below: what else was met when `root` was listed.
    """

    pattern: str
    name: str
    root: str
    files: list[FileInfo]
    is_folder: bool = False
    below: storage.FilesBelow = dataclasses.field(default_factory=storage.FilesBelow)


def find_sources(inputs: Iterable[str], skipping: Skipping) -> list[Source]:
    """Find the files that the inputs name: in their order, but files that are named one by one come last.

    Args:
        inputs: paths, globs, brace patterns or `@file`.
        skipping: decides which folders are not looked into.
    Raises:
        PlanError: if an input is malformed or matches nothing.
    """
    patterns = expand(inputs)
    globs = [pattern for pattern in patterns if storage.is_glob(pattern)]
    literal = _look_up(set(patterns) - set(globs))
    found = {p: literal[p] if p in literal else storage.list_matching(p) for p in patterns}
    skipped = {p: _skipped(p, found[p].folders, skipping) for p in globs}
    found |= {p: found[p]._replace(folders=sorted({*found[p].folders} - {*skipped[p]})) for p in globs}
    folders = [folder for matches in found.values() for folder in matches.folders]
    below = storage.list_folders(folders, skipping.skips_folder)
    sources: list[Source] = []
    named: dict[str, list[tuple[str, FileInfo]]] = defaultdict(list)
    for pattern in patterns:
        files, folders, unlisted = found[pattern]
        left_out = skipped.get(pattern, [])
        if not files and not folders and not unlisted and not left_out:
            raise PlanError(f"--input {pattern} matches nothing; check the path, and quote a glob against the shell")
        if files and pattern in literal:
            named[posixpath.dirname(files[0].uri)].append((pattern, files[0]))
        elif files or unlisted or left_out:
            met = storage.FilesBelow(unlisted=list(unlisted), skipped=left_out)
            sources.append(Source(pattern, pattern, root_of(pattern), files, below=met))
        for folder in folders:
            root = storage.normalise(folder)
            sources.append(Source(pattern, folder, root, below[folder].files, True, below[folder]))
    for folder, pairs in named.items():
        sources.extend(_named(folder, pairs[0][0], list({file.uri: file for _, file in pairs}.values())))
    return sources


def _skipped(pattern: str, folders: Iterable[str], skipping: Skipping) -> list[str]:
    """Return those folders that a glob matches but that are left out, as inside a folder."""
    root = root_of(pattern)
    skips = skipping.is_left_out if names_service_folders(pattern) else skipping.skips_below
    return [folder for folder in folders if skips(folder[len(root) :].strip("/"))]


def _look_up(patterns: Iterable[str]) -> dict[str, storage.Matches]:
    """Return what each path names."""
    by_folder: dict[str, dict[str, str]] = defaultdict(dict)
    for pattern in patterns:
        uri = storage.normalise(pattern)
        by_folder[posixpath.dirname(uri)][pattern] = uri
    found = {}
    for folder, uris in by_folder.items():
        known = {}
        if len(uris) >= _MANY and not storage.is_local(folder) and not storage.is_glob(folder):
            known = {file.uri: file for file in storage.list_folder(folder)}
        for pattern, uri in uris.items():
            found[pattern] = storage.Matches([known[uri]], []) if uri in known else storage.list_matching(pattern)
    return found


def _named(folder: str, pattern: str, files: Sequence[FileInfo]) -> Iterator[Source]:
    """Group files of one folder that were named one by one, as a shell does with a glob: all of a kind are one source.

    Files that are no source by themselves, such as captions, join the first group. Each listing is its own source.
    """
    kinds = by_kind(files)
    groups = [group for kind in ("image", "tar", "tfrecord", "parquet") if (group := kinds.pop(kind, []))]
    listings = kinds.pop("listing", [])
    others = [file for group in kinds.values() for file in group]
    if others:
        groups[:1] = [[*groups[0], *others]] if groups else [others]
    for group in [*groups, *([file] for file in listings)]:
        found = by_kind(group)
        images = [*found["image"], *found["no extension"]]  # the latter are pictures if their first bytes say so
        digest = hashlib.sha256("\n".join(sorted(f.uri for f in images)).encode(errors="surrogateescape")).hexdigest()
        name = group[0].uri if len(group) == 1 else f"{folder}/({len(group)} named files)"
        if images:  # parts are named after it, so it must tell these pictures from others
            name = f"{folder}/({len(images)} named pictures, {digest[:8]})"
        yield Source(pattern, name, folder, group)


def expand(inputs: Iterable[str]) -> list[str]:
    """Expand `@file` and brace patterns; return each path or glob once.

    Raises:
        PlanError: if an input is malformed.
    """
    patterns = []
    for text in inputs:
        if text.startswith("@"):
            try:
                data = storage.read_bytes(text[1:]).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                if storage.is_of_the_machine(error):
                    raise
                raise PlanError(
                    f"--input {text} cannot be read: {error}; it must be a text file, an input a line"
                ) from None
            lines = [line.strip() for line in data.splitlines() if line.strip()]
            if "\0" in data:
                raise PlanError(
                    f"--input {text} has a zero byte in it; it must be a text file in UTF-8, an input a line"
                )
            if not lines or any(line.startswith("@") for line in lines):
                raise PlanError(
                    f"--input {text} must hold inputs, one a line, and no further @file; write at least one"
                )
            patterns.extend(expand(lines))
        else:
            patterns.extend([text] if "{" not in text or storage.exists(text) else expand_braces(text))
    return list(dict.fromkeys(patterns))


def root_of(pattern: str) -> str:
    """Return the folder that the keys of a glob's pictures are relative to: the last one before its first wildcard."""
    fixed = pattern[: min(pattern.find(c) for c in "*?[" if c in pattern)]
    return posixpath.dirname(storage.normalise(f"{fixed}x"))
