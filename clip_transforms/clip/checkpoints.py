"""Read a checkpoint into a ClipModel: verify it, recognise its sizes, and put its tensors where they belong."""

from __future__ import annotations

import io
import pickle

import safetensors.torch
import torch

from clip_transforms import storage
from clip_transforms.clip.architectures import architecture_of
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.model_spec import Checkpoint, CheckpointError, ClipSpec

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
    data = storage.read_bytes(checkpoint.uri)
    state = read_state_dict(data, checkpoint)
    try:
        architecture = architecture_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.uri}: {error}") from error
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
    """Tensors by OpenAI's names, from a `.safetensors` or `.pt` file's bytes, running no code from them.

    Raises:
        CheckpointError: if the bytes are not those that were resolved, or cannot be read without running code.
    """
    import hashlib

    found = hashlib.sha256(data).hexdigest()
    if found != checkpoint.sha256:
        raise CheckpointError(
            f"{checkpoint.uri} has SHA-256 {found}, but the run was planned with {checkpoint.sha256}: the file "
            "changed, or this worker sees another one"
        )
    if data[:4] != b"PK\x03\x04":
        return safetensors.torch.load(data)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.uri} is not a plain state dict: torch.load(weights_only=True) says {str(error)[:200]!r}; "
            "save model.state_dict() instead"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{checkpoint.uri} holds a {type(state).__name__}, not a dict of tensors by name")
    return {name: tensor for name, tensor in state.items() if name not in _EXTRA}


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
