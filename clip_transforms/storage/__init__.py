"""Find, open, stamp and commit files anywhere that fsspec reaches. This package knows nothing of CLIP."""

from clip_transforms.storage.errors import FileChangedError, is_of_the_machine, is_transient
from clip_transforms.storage.finding import (
    FileInfo,
    FilesBelow,
    exists,
    is_folder,
    is_glob,
    list_below,
    list_folders,
    list_matching,
    names_in,
    sizes_in,
)
from clip_transforms.storage.location import (
    StorageError,
    check_writable,
    filesystem,
    is_local,
    join,
    normalise,
    refuse_secrets,
)
from clip_transforms.storage.reading import ResumingFile, local_copy, open_input, read_bytes, sha256, sha256_of
from clip_transforms.storage.retry import retried
from clip_transforms.storage.writing import commit_file, make_folder, remove, write_bytes

__all__ = [
    "FileChangedError",
    "FileInfo",
    "FilesBelow",
    "ResumingFile",
    "StorageError",
    "check_writable",
    "commit_file",
    "exists",
    "filesystem",
    "is_folder",
    "is_glob",
    "is_local",
    "is_of_the_machine",
    "is_transient",
    "join",
    "list_below",
    "list_folders",
    "list_matching",
    "local_copy",
    "make_folder",
    "names_in",
    "normalise",
    "open_input",
    "read_bytes",
    "refuse_secrets",
    "remove",
    "retried",
    "sha256",
    "sha256_of",
    "sizes_in",
    "write_bytes",
]
