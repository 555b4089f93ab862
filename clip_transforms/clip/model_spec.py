"""ClipSpec: which checkpoint, precision and device. Pure Python, so that the launcher needs no torch."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import json
import os
from collections.abc import Mapping
from pathlib import Path

from clip_transforms import storage
from clip_transforms.clip.architectures import PUBLISHED, Architecture, architecture_of
from clip_transforms.clip.torch_archive import Archive, ArchiveError

ACTIVATIONS = ("quick_gelu", "gelu")
PRECISIONS = ("fp32",)
DEVICES = ("auto", "cpu", "cuda")
DEMO = "demo"


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or trusted, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, with what decides its numbers.

    Attributes:
        uri: the file.
        sha256: of the file, hex; verified again where the weights are read.
        activation: `quick_gelu` or `gelu`.
        architecture: its sizes, where they are known without torch; else None.
    """

    uri: str
    sha256: str
    activation: str
    architecture: Architecture | None


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Which CLIP, in which precision, on which device.

    Attributes:
        model: a published name (`ViT-B/32`), a checkpoint file (path or fsspec URI), or `demo`.
        activation: `quick_gelu` or `gelu`, where the file does not say it.
        precision: `fp32`.
        device: `cpu`, `cuda`, or `auto`, resolved on each worker.
    """

    model: str
    activation: str | None = None
    precision: str = "fp32"
    device: str = "auto"

    def __post_init__(self):
        """Refuse a wrong setting where it is written, not on a worker."""
        for field, value, allowed in (
            ("activation", self.activation, (None, *ACTIVATIONS)),
            ("precision", self.precision, PRECISIONS),
            ("device", self.device, DEVICES),
        ):
            if value not in allowed:
                names = " or ".join(str(a) for a in allowed if a)
                raise ValueError(f"--{field} is {value!r}, but it must be {names}")

    @property
    def published_name(self) -> str | None:
        """The published name that `model` means, forgiving case and `-` for `/`; None if it means another thing."""
        return {_fold(name): name for name in PUBLISHED}.get(_fold(self.model))

    @property
    def location(self) -> str:
        """`model` as it means the same from another folder: a name stays, a path becomes absolute."""
        return self.model if self.model == DEMO or self.published_name else storage.normalise(self.model)

    def find(self) -> str:
        """The URI of the checkpoint's file.

        Raises:
            CheckpointError: if there is none.
        """
        if self.model == DEMO:
            return str(importlib.resources.files("clip_transforms") / "demo" / "demo.safetensors")
        if name := self.published_name:
            path = Path(os.environ.get("CLIP_CACHE") or Path.home() / ".cache" / "clip") / PUBLISHED[name].file
            if not path.is_file():
                raise CheckpointError(
                    f"--model {self.model} is not in the cache; get it with: mkdir -p {path.parent} && curl -L -o "
                    f"{path} {PUBLISHED[name].url} (or give a checkpoint's path, or --model {DEMO} to try things out)"
                )
            return str(path)
        if not storage.exists(self.model):
            near = difflib.get_close_matches(self.model, [*PUBLISHED, DEMO], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise CheckpointError(
                f"--model {self.model} is neither a file nor a known model ({', '.join(PUBLISHED)}, {DEMO}){hint}"
            )
        if storage.is_folder(self.model):
            raise CheckpointError(f"--model {self.model} is a folder, but it must be a .pt or .safetensors file")
        return storage.normalise(self.model)

    def resolve(self) -> Checkpoint:
        """Find the checkpoint and what decides its numbers, without torch and without reading its weights.

        Raises:
            CheckpointError: if it is missing, of another kind, or does not say its activation and none was given.
        """
        uri = self.find()
        digest = storage.sha256(uri)
        said, architecture = read_header(uri)
        known = next((p for p in PUBLISHED.values() if p.sha256 == digest), None)
        name = self.published_name
        if name and digest != PUBLISHED[name].sha256:
            raise CheckpointError(
                f"--model {self.model}: {uri} has SHA-256 {digest}, but the published file has "
                f"{PUBLISHED[name].sha256}; remove it and download it again"
            )
        activation = "quick_gelu" if known else said
        if activation and self.activation and self.activation != activation:
            raise CheckpointError(
                f"--activation is {self.activation}, but {uri} was trained with {activation}; leave the flag away"
            )
        if not (activation or self.activation):
            raise CheckpointError(
                f"--model {self.model} does not say which activation it was trained with, and the wrong one gives "
                "wrong vectors without any error: give --activation quick_gelu (OpenAI's own and models tuned from "
                "them) or --activation gelu (most of LAION's and DataComp's)"
            )
        return Checkpoint(uri, digest, activation or self.activation, architecture)


def _fold(name: str) -> str:
    return name.lower().replace("/", "-")


def read_header(uri: str) -> tuple[str | None, Architecture | None]:
    """What a checkpoint says of itself without its weights being read: activation and sizes, None where unknown.

    Raises:
        CheckpointError: if the file is no checkpoint.
    """
    try:
        with storage.open_input(uri) as file:
            start = file.read(8)
            if is_archive(start):  # torch's format, which says no activation
                header = None
                shapes = {name: tensor.shape for name, tensor in Archive(file).tensors.items()}
            elif header := safetensors_header(start, file):
                tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
                shapes = {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}
                end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
                size = 8 + int.from_bytes(start, "little") + end
                if (found := file.seek(0, 2)) != size:
                    raise CheckpointError(f"{uri} has {found:,} bytes, but its header says {size:,}; download it again")
            else:
                raise CheckpointError(f"{uri} is neither a .safetensors file nor one that torch.save wrote")
        architecture = architecture_of(shapes)
    except CheckpointError:
        raise
    except (ArchiveError, ValueError) as error:
        raise CheckpointError(f"{uri}: {error}") from error
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{uri} has a malformed header ({error!r}); download it again") from error
    metadata = (header or {}).get("__metadata__")
    activation = metadata.get("activation") if isinstance(metadata, dict) else None
    if activation is not None and activation not in ACTIVATIONS:
        raise CheckpointError(f"{uri} names the activation {activation!r}, but known are {' and '.join(ACTIVATIONS)}")
    return activation, architecture


def is_archive(start: bytes) -> bool:
    """Whether a file's first bytes are those of a zip file, as torch.save and torch.jit.save write."""
    return start[:4] == b"PK\x03\x04"


def safetensors_header(start: bytes, file) -> Mapping | None:
    """The JSON header of a safetensors file of which `start`, its first eight bytes, were read; None if it is none."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= 100_000_000:  # the format's own limit
        return None
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
