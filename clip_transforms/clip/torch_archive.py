"""Read the archives that torch.save and torch.jit.save write, without torch and without running code from them.

Both are zip files. A pickle, `data.pkl`, names the tensors, and one file per storage holds their bytes. The unpickler
here knows the dozen names that tensors need. For any other name it makes an inert stand-in, so it imports and calls
nothing, and what a training program saved beside the weights is passed over. Torch's `serialization.py` and
`jit/_pickle.py` define the format.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
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
# Names that are usual beside the weights of a training checkpoint. No message mentions them.
_USUAL = {
    *(f"torch.{name}" for name in ("Size", "device", "float64", "float32", "float16", "bfloat16")),
    *(f"torch.{name}" for name in ("int64", "int32", "int16", "int8", "uint8", "bool", "Tensor")),
    *(f"{module}.{name}" for module in ("__builtin__", "builtins") for name in ("set", "bytearray", "complex")),
    *("collections.Counter", "collections.defaultdict", "_codecs.encode", "argparse.Namespace"),
    *(f"pathlib.{name}" for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
}
_TENSOR_CLASSES = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_MAX_ENTRIES = 1_000_000  # entries of nested dicts; a dict that occurs twice counts twice
_MAX_STRANGERS = 10_000  # names that weights do not need; each takes a kilobyte here
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
    """An open archive.

    Attributes:
        is_script: whether torch.jit.save wrote it.
        tensors: dotted name → the tensor's place in the file.
        passed_over: dotted name → a sentence that says why the entry there was not read. Usual entries beside weights
            are not among them.
    """

    def __init__(self, file: IO[bytes]):
        """Read the pickle.

        Args:
            file: a seekable file.
        Raises:
            ArchiveError: if the file is no such archive, or has a tensor outside its storage.
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
        self.tensors, self.passed_over = {}, {}
        for name, found in _entries(content, itertools.count(1)):
            if isinstance(found, StoredTensor):
                self.tensors[name] = found
            else:
                self.passed_over[name] = found.sentence(name)

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

    def _checked(self, storage: tuple, offset: Any, shape: Any, stride: Any) -> StoredTensor | _Bag:
        """Return a tensor after checking that it is inside its storage, whatever the pickle claims.

        For a tensor of a dtype that weights do not have, it returns a stand-in.
        """
        kind, type_, key, _, count = storage
        if kind == "storage" and isinstance(type_, type) and issubclass(type_, _Bag):
            return _class_of(_ForeignTensor, type_.origin)()
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
    """A stand-in for every class in an archive: it keeps attributes or entries, and has no behaviour."""

    origin = ""

    def __new__(cls, *_: Any) -> _Bag:
        bag = super().__new__(cls)
        bag.attributes = {}
        return bag

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state


class _Stranger(_Bag):
    """A stand-in for anything that weights do not need; `origin` is its full name. It keeps the entries of a dict."""

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, name: Any, value: Any) -> None:
        self.attributes[name] = value

    def __call__(self, *_: Any) -> _Bag:
        return self

    def append(self, *_: Any) -> None:
        pass

    add = extend = update = append

    def sentence(self, name: str) -> str:
        """Say why it was not read; `name` is its dotted name in the archive."""
        return (
            f"its pickle asks for {self.origin}, which weights do not need, so {name or 'it'} was passed over and "
            "nothing was run"
        )


class _ForeignTensor(_Stranger):
    """A stand-in for a tensor whose dtype weights do not have; `origin` names the dtype."""

    def sentence(self, name: str) -> str:
        """Say why it was not read; `name` is its dotted name in the archive."""
        return f"{name} is a tensor of {self.origin}, but weights must be floating point of 16, 32 or 64 bits"


def _class_of(kind: type[_Stranger], origin: str) -> type[_Stranger]:
    """Return a class of stand-ins that know their origin: a pickle may make instances in several ways."""
    return type(kind.__name__, (kind,), {"origin": origin})


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: Archive, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self._archive = archive
        self._strangers: dict[str, type[_Stranger]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(*_STORAGES[name])
        if module in ("torch._utils", "torch._tensor") and name in _REBUILDS:
            return functools.partial(_REBUILDS[name], self._archive._checked)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if module == "torch.jit._pickle" and name == "build_tensorlist":
            return list
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return lambda value, _: value
        if module == "__torch__" or module.startswith("__torch__."):
            return _Bag
        origin = f"{module}.{name}"
        if len(self._strangers) > _MAX_STRANGERS:
            raise ArchiveError(f"its pickle asks for more than {_MAX_STRANGERS:,} names that weights do not need")
        return self._strangers.setdefault(origin, self._strangers.get(origin) or _class_of(_Stranger, origin))

    def persistent_load(self, pid: Any) -> Any:
        return tuple(pid)


def _from_type(_: Any, function: Any, type_: Any, args: Any, *state: Any) -> Any:
    """Return a tensor with attributes of its own, if its class is torch's; other classes may read bytes otherwise."""
    if isinstance(function, functools.partial) and getattr(type_, "origin", "") in _TENSOR_CLASSES:
        return function(*args)
    return type_() if isinstance(type_, type) and issubclass(type_, _Stranger) else _Stranger()


# Name of a function of torch that rebuilds a tensor → our own, whose first argument is the archive's check.
_REBUILDS: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": lambda checked, storage, offset, shape, stride: checked(storage, offset, shape, stride),
    "_rebuild_tensor_v2": lambda checked, storage, offset, shape, stride, *_: checked(storage, offset, shape, stride),
    "_rebuild_tensor_v3": lambda _, storage, offset, shape, stride, grad, hooks, dtype, *__: _class_of(
        _ForeignTensor, str(dtype.origin)
    )(),
    "_rebuild_parameter": lambda _, tensor, *__: tensor,
    "_rebuild_parameter_with_state": lambda _, tensor, *__: tensor,
    "_rebuild_from_type": _from_type,
    "_rebuild_from_type_v2": _from_type,
}


def _entries(content: Any, entries: Iterator[int], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, tensor or unusual stand-in) from nested dicts and modules."""
    if isinstance(content, StoredTensor):
        yield prefix, content
        return
    if next(entries) > _MAX_ENTRIES:
        raise ArchiveError(f"its dicts have more than {_MAX_ENTRIES:,} entries, which is more than any CLIP needs")
    if isinstance(content, _Stranger) and content.origin not in _USUAL and not content.origin.startswith("numpy."):
        yield prefix, content
    children = content.attributes if isinstance(content, _Bag) else content
    if isinstance(children, dict) and depth < 32:
        for name, child in children.items():
            if isinstance(name, str):
                yield from _entries(child, entries, f"{prefix}.{name}" if prefix else name, depth + 1)
