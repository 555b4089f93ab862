"""Read the archives that torch.save and torch.jit.save write, without torch and without running code from them.

Both are zip files. A pickle, `data.pkl`, names the tensors, and one file per storage holds their bytes. The unpickler
here knows a dozen harmless names and nothing else. Torch's `serialization.py` and `jit/_pickle.py` define the format.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

# Storage type → the bytes per element, and the name of the dtype.
_STORAGES = {
    "DoubleStorage": (8, "float64"),
    "FloatStorage": (4, "float32"),
    "HalfStorage": (2, "float16"),
    "BFloat16Storage": (2, "bfloat16"),
    "LongStorage": (8, "int64"),
    "IntStorage": (4, "int32"),
    "ShortStorage": (2, "int16"),
    "CharStorage": (1, "int8"),
    "ByteStorage": (1, "uint8"),
    "BoolStorage": (1, "bool"),
}
# Errors that zipfile and pickle raise for truncated or altered files; zipfile raises RuntimeError for encrypted ones.
_DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, struct.error, zlib.error, EOFError, OSError, RuntimeError)
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError)
# Things beside the weights in a training checkpoint that torch.load(weights_only=True) accepts too. They are dropped.
_DROPPED = {
    *(("torch", name) for name in ("Size", "device", "float64", "float32", "float16", "bfloat16")),
    *(("torch", name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")),
    *(("__builtin__", name) for name in ("set", "bytearray", "complex")),
    ("collections", "Counter"),
    ("_codecs", "encode"),
}
_MAX_ENTRIES = 1_000_000  # entries of nested dicts; a dict that occurs twice counts twice
_MAX_PICKLE_BYTES = 64 << 20  # the largest CLIP needs less than 1 MiB


class ArchiveError(ValueError):
    """An archive cannot be read, or not without running code from it; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    Attributes:
        dtype: torch's name of the dtype.
        start: the offset of the first element, in bytes from the start of the file.
        shape, stride: the shape and stride, in elements.
    """

    dtype: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """The number of elements from the tensor's first to its last, including foreign elements between them."""
        return (
            1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True)) if all(self.shape) else 0
        )


class Archive:
    """An open archive, with its `tensors` by dotted name and the places of their bytes in the file."""

    def __init__(self, file: IO[bytes]):
        """Read the pickle.

        Args:
            file: a seekable file.
        Raises:
            ArchiveError: if the file is no such archive, asks for code, or has a tensor outside its storage.
        """
        try:
            self._file, self._zip = file, zipfile.ZipFile(file)
            self._starts: dict[str, int] = {}
            names = [info.filename for info in self._zip.infolist()]
            pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ArchiveError("it has no data.pkl, so torch.save did not write it")
            self._root = pickles[0].removesuffix("data.pkl")
            self.is_script = f"{self._root}constants.pkl" in names  # torch.jit.save writes it, torch.save does not
            info = self._zip.getinfo(pickles[0])
            if info.file_size > _MAX_PICKLE_BYTES:
                raise ArchiveError(f"its data.pkl has {info.file_size:,} bytes, which is more than any CLIP needs")
            data = self._zip.read(info)
            content = _Unpickler(self, io.BytesIO(data)).load()
        except ArchiveError:
            raise
        except _DAMAGE as error:
            raise ArchiveError(f"it is damaged: {type(error).__name__}: {error}") from error
        except _MALFORMED as error:
            raise ArchiveError(f"its pickle is malformed: {type(error).__name__}: {error}") from error
        self.tensors = dict(_tensors(content, itertools.count(1)))

    def _start_of(self, info: zipfile.ZipInfo) -> int:
        """Return where a member's bytes begin: behind its own header, which alone states its length."""
        if info.filename not in self._starts:
            self._file.seek(info.header_offset)
            header = self._file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise ArchiveError(f"it is damaged: {info.filename} has no header where it should be")
            start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
            if self._file.seek(0, 2) < start + info.file_size:
                raise ArchiveError(f"it is damaged: {info.filename} extends beyond the end of the file")
            self._starts[info.filename] = start
        return self._starts[info.filename]

    def _checked(self, storage: tuple, offset: Any, shape: Any, stride: Any) -> StoredTensor:
        """Return a tensor after checking that it is inside its storage, whatever the pickle claims."""
        kind, type_, key, _, count = storage
        if kind != "storage" or not isinstance(type_, _StorageType) or not str(key).isalnum():
            raise ArchiveError("one of its tensors has no storage")
        shape, stride = tuple(shape), tuple(stride)
        numbers = (offset, count, *shape, *stride)
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or len(shape) != len(stride):
            raise ArchiveError("one of its tensors has sizes that are not whole numbers")
        member = f"{self._root}data/{key}"
        info = self._zip.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ArchiveError(f"{member} is compressed, which torch never does")
        tensor = StoredTensor(type_.dtype, self._start_of(info) + offset * type_.size, shape, stride)
        if offset + tensor.span > count or count * type_.size > info.file_size:
            raise ArchiveError(f"a tensor of shape {list(shape)} does not fit in its storage of {info.file_size} bytes")
        return tensor


@dataclasses.dataclass(frozen=True)
class _StorageType:
    size: int
    dtype: str


class _Bag:
    """A stand-in for every class in an archive: it keeps attributes and has no behaviour."""

    def __new__(cls, *_: Any) -> _Bag:
        bag = super().__new__(cls)
        bag.attributes = {}
        return bag

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: Archive, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(*_STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: self._archive._checked(storage, offset, shape, stride)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if module == "torch.jit._pickle" and name == "build_tensorlist":
            return list
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return lambda value, _: value
        if (module, name) in _DROPPED or module == "__torch__" or module.startswith("__torch__."):
            return _Bag
        raise ArchiveError(f"its pickle asks for {module}.{name}, which weights do not need, so nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        return tuple(pid)


def _tensors(content: Any, entries: Iterator[int], prefix: str = "", depth: int = 0) -> Iterator[tuple]:
    """Yield (dotted name, tensor) from nested dicts and modules."""
    if isinstance(content, StoredTensor):
        yield prefix, content
        return
    if next(entries) > _MAX_ENTRIES:
        raise ArchiveError(f"its dicts have more than {_MAX_ENTRIES:,} entries, which is more than any CLIP needs")
    children = content.attributes if isinstance(content, _Bag) else content
    if isinstance(children, dict) and depth < 32:
        for name, child in children.items():
            if isinstance(name, str):
                yield from _tensors(child, entries, f"{prefix}.{name}" if prefix else name, depth + 1)
