"""Read a checkpoint into a ClipModel: verify it, then load its tensors in the run's precision."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from clip_transforms import storage
from clip_transforms.clip.downloads import fetch
from clip_transforms.clip.folding import fold
from clip_transforms.clip.layouts import TensorSource, recognise
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.precision import resolve_precision
from clip_transforms.clip.recognition import Checkpoint, CheckpointError, combined_sha256
from clip_transforms.clip.torch_archive import ArchiveError, StoredTensor
from clip_transforms.clip.weights_file import read_weights_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load(
    model: str,
    device: str = "auto",
    *,
    activation: str | None = None,
    precision: str = "auto",
    vision: bool = True,
    checkpoint_key: str | None = None,
) -> ClipModel:
    """Load a CLIP.

    Args:
        model: a published name (`ViT-B/32`, downloaded once), a checkpoint file or folder (path or fsspec URI), or
            `demo`.
        device: `cpu`, `cuda` or `auto`.
        activation: `quick_gelu` or `gelu`; needed only if the checkpoint does not name its activation.
        precision: the precision of the towers: `fp32`, `bf16`, `fp16`, or `auto` (see `precision.resolve_precision`).
        vision: whether to load the vision tower; False loads the text tower alone.
        checkpoint_key: the start of the names of the weights, if the file holds several models or a larger one.
    Returns:
        The model in inference mode.
    Raises:
        CheckpointError: if the checkpoint is missing, is of another kind, or does not name its activation.
        RuntimeError: if `device` is `cuda` and there is no CUDA device.
    """
    spec = ClipSpec(model, activation, precision, device, checkpoint_key)
    return load_checkpoint(spec.resolve(), spec.device, spec.precision, vision=vision)


def load_checkpoint(
    checkpoint: Checkpoint, device: str = "auto", precision: str = "auto", *, vision: bool = True
) -> ClipModel:
    """Load a checkpoint that was resolved earlier, perhaps on another machine; verify its SHA-256 again."""
    place = resolve_device(device)
    with torch.device("meta"), _WithoutInitialisation():  # takes no memory for weights that are replaced below
        model = ClipModel(checkpoint.architecture, checkpoint.activation, checkpoint.preprocessing)
    if not vision:
        model.visual = None
    folded = fold(model)
    try:
        with _open(checkpoint) as tensors:
            _, sources = recognise(tensors, checkpoint.key)
            stored = getattr(torch, tensors[sources["text_projection"].names[0]][1].dtype)
            precision = resolve_precision(precision, place, checkpoint.architecture.is_resnet, stored)

            def read(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
                return _tensor(sources[published_name(name)], tensors, place, dtype)

            state = model.state_dict()
            for name in state:
                dtype = _dtype(name, precision)
                found = folded[name](read).to(dtype) if name in folded else read(name, dtype)
                state[name] = found.view(state[name].shape)  # some files store the logit scale with shape [1]
    except (ArchiveError, KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.where}: {error}") from error
    model.load_state_dict(state, assign=True)
    model.precision = precision
    return model.eval().requires_grad_(False)


class _WithoutInitialisation(TorchFunctionMode):
    """A mode in which modules do not initialise their weights: on the meta device, the first fill takes a second."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in ("uniform_", "normal_", "kaiming_uniform_", "fill_", "zero_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _dtype(name: str, precision: str) -> torch.dtype:
    """Return a tensor's dtype: the logit scale belongs to no tower and is always fp32."""
    return torch.float32 if name == "logit_scale" else DTYPES[precision]


@contextlib.contextmanager
def _open(checkpoint: Checkpoint) -> Iterator[dict[str, tuple[mmap.mmap, StoredTensor]]]:
    """Map a checkpoint's files into memory and yield their tensors; nothing is copied yet.

    Raises:
        CheckpointError: if the bytes differ from those that were resolved.
    """
    with contextlib.ExitStack() as stack:
        paths = [str(fetch(checkpoint.published))] if checkpoint.published else []
        paths = paths or [stack.enter_context(storage.local_copy(uri)) for uri in checkpoint.files]
        files = [stack.enter_context(open(path, "rb")) for path in paths]
        found = combined_sha256([storage.sha256_of(file) for file in files])
        if found != checkpoint.sha256:
            raise CheckpointError(
                f"{checkpoint.where} has SHA-256 {found}, but the run was planned with {checkpoint.sha256}: the file "
                "has changed, or this worker sees a different file"
            )
        tensors: dict[str, tuple[mmap.mmap, StoredTensor]] = {}
        for file in files:
            file.seek(0)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch warns about read-only memory
            tensors |= {name: (mapped, tensor) for name, tensor in read_weights_file(file).tensors.items()}
        yield tensors


def _tensor(
    source: TensorSource,
    tensors: Mapping[str, tuple[mmap.mmap, StoredTensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Make one tensor of the model from the file's tensors. This is the only copy of the weights."""
    parts = [_view(*tensors[name]) for name in source.names]
    if len(parts) == 1:
        part = parts[0].T if source.transposed else parts[0]
        return torch.empty(part.shape, dtype=dtype, device=device).copy_(part)
    return torch.cat([part.to(device, dtype) for part in parts])


def _view(mapped: mmap.mmap, tensor: StoredTensor) -> torch.Tensor:
    if not tensor.span:
        return torch.empty(tensor.shape)
    flat = torch.frombuffer(mapped, dtype=getattr(torch, tensor.dtype), count=tensor.span, offset=tensor.start)
    return flat.as_strided(tensor.shape, tensor.stride)


def published_name(name: str) -> str:
    """Return OpenAI's name for a tensor: there, the text tower's tensors have no prefix."""
    return name.removeprefix("text.")


def resolve_device(device: str) -> torch.device:
    """Return the device to use: `auto` means CUDA if it is available, else the CPU.

    Raises:
        RuntimeError: if `device` is `cuda` and there is no CUDA device; a run never falls back to the CPU silently.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"--device is cuda, but torch {torch.__version__} finds no CUDA device here; use --device cpu, or install "
            "a CUDA build of torch"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
