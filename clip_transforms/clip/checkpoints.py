"""Read a checkpoint into a ClipModel: verify it, recognise its sizes, and put its tensors where they belong."""

from __future__ import annotations

import hashlib
import io
import pickle

import safetensors.torch
import torch

from clip_transforms import storage
from clip_transforms.clip.architectures import architecture_of
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.model_spec import Checkpoint, CheckpointError, ClipSpec, is_archive
from clip_transforms.clip.torch_archive import Archive, ArchivedTensor, ArchiveError

# Scalars that OpenAI's archives carry beside the weights.
_EXTRA = ("input_resolution", "context_length", "vocab_size")


def load(
    model: str, device: str = "auto", *, activation: str | None = None, precision: str = "fp32", vision: bool = True
) -> ClipModel:
    """Load a CLIP.

    Args:
        model: a published name (`ViT-B/32`), a checkpoint file (path or fsspec URI), or `demo`.
        device: `cpu`, `cuda`, or `auto`.
        activation: `quick_gelu` or `gelu`, where the checkpoint does not say it.
        precision: of the towers, `fp32`.
        vision: False loads the text tower alone.
    Returns:
        The model in inference mode.
    Raises:
        CheckpointError: if the checkpoint is missing, of another kind, or does not say its activation.
        RuntimeError: if `device` is `cuda` and there is none.
    """
    spec = ClipSpec(model, activation, precision, device)
    return load_checkpoint(spec.resolve(), spec.device, vision=vision)


def load_checkpoint(checkpoint: Checkpoint, device: str = "auto", *, vision: bool = True) -> ClipModel:
    """Load a checkpoint that was resolved, perhaps on another machine; its SHA-256 is verified again."""
    try:
        state = read_state_dict(storage.read_bytes(checkpoint.uri), checkpoint)
        architecture = architecture_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    except (ArchiveError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint.uri}: {str(error)[:300]}") from error
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        model = ClipModel(architecture, checkpoint.activation)
    if not vision:
        model.visual = None
        state = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    try:
        model.load_state_dict(model_names(state), assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.uri} is not a CLIP that this code knows: {error}") from error
    return model.float().to(resolve_device(device)).eval().requires_grad_(False)


def read_state_dict(data: bytes, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Tensors by OpenAI's names, from a file's bytes, running no code from them.

    Args:
        data: safetensors, a state dict that torch.save wrote, or a TorchScript archive as OpenAI published.
        checkpoint: as it was resolved.
    Raises:
        CheckpointError: if the bytes are not those that were resolved.
        ArchiveError: if they cannot be read without running code.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != checkpoint.sha256:
        raise CheckpointError(
            f"{checkpoint.uri} has SHA-256 {found}, but the run was planned with {checkpoint.sha256}: the file "
            "changed, or this worker sees another one"
        )
    if not is_archive(data):
        state = safetensors.torch.load(data)
    elif (archive := Archive(io.BytesIO(data))).is_script:
        state = {name: _tensor(archive, tensor) for name, tensor in archive.tensors.items()}
    else:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in state.items() if name not in _EXTRA}


def _tensor(archive: Archive, tensor: ArchivedTensor) -> torch.Tensor:
    """A tensor of a TorchScript archive, from the bytes of its storage."""
    storage_ = torch.frombuffer(bytearray(archive.storage(tensor)), dtype=getattr(torch, tensor.dtype))
    return storage_.as_strided(tensor.shape, tensor.stride, tensor.offset)


def model_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's names → ours: the text tower, which lies at the top of a checkpoint, goes below `text.`."""
    return {_model_name(name): tensor for name, tensor in state.items()}


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names → OpenAI's, for writing a checkpoint."""
    return {name.removeprefix("text."): tensor for name, tensor in state.items()}


def _model_name(name: str) -> str:
    return name if name == "logit_scale" or name.startswith("visual.") else f"text.{name}"


def resolve_device(device: str) -> torch.device:
    """`auto` → CUDA where there is some, else the CPU.

    Raises:
        RuntimeError: if `device` is `cuda` and there is none; it never becomes a CPU run without a word.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"--device is cuda, but torch {torch.__version__} finds no CUDA device here; use --device cpu, or install "
            "a CUDA build of torch"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
