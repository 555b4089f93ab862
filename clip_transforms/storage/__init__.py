"""Find, open, stamp and commit files anywhere that fsspec reaches. This package knows nothing of CLIP."""

from clip_transforms.storage.arguments import (
    ArgumentTypeError,
    Place,
    Places,
    as_names,
    as_setting,
    as_uri,
    as_uris,
    check_types,
    refuse_type,
    several,
)
from clip_transforms.storage.csv_table import read_csv
from clip_transforms.storage.errors import FileChangedError, is_of_the_machine, is_transient
from clip_transforms.storage.file_info import FileInfo, Unlisted, exists, is_folder
from clip_transforms.storage.finding import (
    FilesBelow,
    infos_of,
    list_below,
    list_folder,
    list_folders,
    names_in,
)
from clip_transforms.storage.globbing import Matches, glob_regex, is_glob, list_matching
from clip_transforms.storage.location import (
    StorageError,
    check_writable,
    filesystem,
    is_local,
    join,
    local_path,
    normalise,
    refuse_secrets,
)
from clip_transforms.storage.reading import (
    ResumingFile,
    local_copy,
    open_input,
    read_bytes,
    read_end,
    sha256,
    sha256_of,
)
from clip_transforms.storage.retry import retried
from clip_transforms.storage.writing import commit_file, make_folder, remove, write_bytes, write_files

__all__ = [
    "ArgumentTypeError",
    "FileChangedError",
    "FileInfo",
    "FilesBelow",
    "Matches",
    "Place",
    "Places",
    "ResumingFile",
    "StorageError",
    "Unlisted",
    "as_names",
    "as_setting",
    "as_uri",
    "as_uris",
    "check_types",
    "check_writable",
    "commit_file",
    "exists",
    "filesystem",
    "glob_regex",
    "infos_of",
    "is_folder",
    "is_glob",
    "is_local",
    "is_of_the_machine",
    "is_transient",
    "join",
    "list_below",
    "list_folder",
    "list_folders",
    "list_matching",
    "local_copy",
    "local_path",
    "make_folder",
    "names_in",
    "normalise",
    "open_input",
    "read_bytes",
    "read_csv",
    "read_end",
    "refuse_secrets",
    "refuse_type",
    "remove",
    "retried",
    "several",
    "sha256",
    "sha256_of",
    "write_bytes",
    "write_files",
]
