"""List the tensors in a file of weights without reading them. Pure Python, so that the launcher needs no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import IO, Any

from clip_transforms.clip.torch_archive import Archive, ArchiveError, StoredTensor

# Safetensors' name of a dtype → torch's name, and the bytes per element.
_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF"  # such a file starts with this pickled number
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """The contents of a file of weights.

    Attributes:
        kind: `safetensors`, `state dict` (torch.save), or `TorchScript`.
        tensors: tensor name → the tensor's place in the file.
        metadata: the texts in a safetensors header.
        passed_over: name → a sentence that says why the entry of that name was not read.
    """

    kind: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    passed_over: Mapping[str, str]


def read_weights_file(file: IO[bytes]) -> WeightsFile:
    """List the tensors of an open file, without reading weights or running code from the file.

    Args:
        file: a seekable file, at its start.
    Raises:
        ArchiveError: if the file holds no weights, or is damaged.
    """
    start = file.read(8)
    if start[:4] == b"PK\x03\x04":  # a zip file, which torch.save and torch.jit.save write
        archive = Archive(file)
        kind = "TorchScript" if archive.is_script else "state dict"
        return WeightsFile(kind, archive.tensors, {}, archive.passed_over)
    if start == _OLD_TORCH:
        raise ArchiveError(
            "it is in the format of torch before 1.6, which this program does not read; save it again with "
            "torch.save(torch.load(…), …)"
        )
    header = _safetensors_header(start, file)
    if header is None:
        raise ArchiveError("it is neither a .safetensors file nor a file that torch.save wrote")
    try:
        metadata = header.pop("__metadata__", None) or {}
        base, size = 8 + int.from_bytes(start, "little"), file.seek(0, 2)
        foreign = {
            name: f"{name} is {entry['dtype']}, but weights must be F16, BF16, F32 or F64"
            for name, entry in header.items()
            if entry["dtype"] not in _DTYPES
        }
        tensors = {name: _stored(name, entry, base) for name, entry in header.items() if name not in foreign}
        end = max((base + entry["data_offsets"][1] for entry in header.values()), default=base)
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise ArchiveError(f"it has a malformed header ({error!r}); download it again") from error
    if end != size:
        raise ArchiveError(f"it has {size:,} bytes, but its header says {end:,}; download it again")
    return WeightsFile("safetensors", tensors, metadata if isinstance(metadata, dict) else {}, foreign)


def _stored(name: str, entry: Mapping[str, Any], base: int) -> StoredTensor:
    dtype, itemsize = _DTYPES[entry["dtype"]]
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name} has sizes that are not whole numbers")
    if end - begin != math.prod(shape) * itemsize:
        raise ValueError(f"{name} has {end - begin} bytes for shape {list(shape)} of {dtype}")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return StoredTensor(dtype, base + begin, shape, strides)


def _safetensors_header(start: bytes, file: IO[bytes]) -> dict[str, Any] | None:
    """Return a safetensors file's JSON header, or None if there is none; `start` holds the first eight bytes."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= _MAX_HEADER_BYTES:
        return None
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
