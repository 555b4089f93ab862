"""ClipSpec: the choice of checkpoint, precision and device. Pure Python, so that the launcher needs no torch."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import re

from clip_transforms import storage
from clip_transforms.clip.architectures import PUBLISHED
from clip_transforms.clip.configurations import read_configuration
from clip_transforms.clip.recognition import (
    ACTIVATIONS,
    Checkpoint,
    CheckpointError,
    published_checkpoint,
    read_checkpoint,
)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
BATCH_SIZES = {"cpu": 32, "cuda": 256}  # the usual number of pictures in a batch, by device
DEMO = "demo"
# owner/name, as the Hugging Face hub names a repository; not the path of a file of weights.
_REPOSITORY = re.compile(r"[\w-][\w.-]*/(?!.*\.(?:pt|pth|bin|ckpt|safetensors)$)[\w.-]+")
_MODEL = "a text, a Path or a ClipSpec"


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """The choice of a CLIP, its precision and its device.

    Attributes:
        model: a published name (`ViT-B/32`), a checkpoint (a file, or a folder with a configuration; path or fsspec
            URI), or `demo`.
        activation: `quick_gelu` or `gelu`; needed only if the checkpoint does not name its activation.
        precision: the precision of the towers: `fp32`, `bf16`, `fp16` or `auto`. Each worker resolves `auto`: bf16 if
            the hardware multiplies it faster, fp16 on older GPUs, else fp32.
        device: `cpu`, `cuda`, or `auto`, which each worker resolves.
        checkpoint_key: the start of the names of the weights, such as `state_dict_ema` or `clip_model`; needed only if
            the file holds several models or a larger one. `.` means the model whose names have no such start.
    """

    model: str
    activation: str | None = None
    precision: str = "auto"
    device: str = "auto"
    checkpoint_key: str | None = None

    def __post_init__(self):
        """Refuse a wrong setting here, not on a worker."""
        object.__setattr__(self, "model", storage.as_uri(self.model, "model", _MODEL))
        storage.check_types(self)
        for field, value, allowed in (
            ("activation", self.activation, (None, *ACTIVATIONS)),
            ("precision", self.precision, PRECISIONS),
            ("device", self.device, DEVICES),
        ):
            if value not in allowed:
                names = " or ".join(str(a) for a in allowed if a)
                raise ValueError(f"--{field} is {value!r}, but it must be {names}")
        if self.checkpoint_key is not None:
            if not self.checkpoint_key or self.published_name:
                raise ValueError(
                    f"--checkpoint_key is {self.checkpoint_key!r}, but it must be the start of the names of the "
                    "weights in a file, and --model must be that file; omit the flag"
                )
            object.__setattr__(self, "checkpoint_key", self.checkpoint_key.removesuffix(".") or ".")

    @classmethod
    def of(cls, model: ClipSpec | storage.Place) -> ClipSpec:
        """Return the spec itself, or the spec of a model that is named by a text or a Path.

        Raises:
            ArgumentTypeError: if it is something else.
        """
        return model if isinstance(model, ClipSpec) else cls(storage.as_uri(model, "model", _MODEL))

    @property
    def published_name(self) -> str | None:
        """The published name that `model` means, if any. Case does not matter, and `-` may stand for `/`."""
        return {_fold(name): name for name in PUBLISHED}.get(_fold(self.model))

    @property
    def location(self) -> str:
        """`model` in a form that means the same in any working folder: names stay, paths become absolute."""
        return self.model if self.model == DEMO or self.published_name else storage.normalise(self.model)

    def resolve(self) -> Checkpoint:
        """Find the checkpoint and everything that decides its numbers, without torch.

        For a published name, no file is read.

        Raises:
            CheckpointError: if the checkpoint is missing or of another kind, or if neither it nor this spec names the
                activation.
        """
        return self._checked(self.recognise())

    def recognise(self) -> Checkpoint:
        """Return the checkpoint as its files describe it; the activation is empty if they do not name it.

        Raises:
            CheckpointError: if the checkpoint is missing or of another kind.
        """
        if name := self.published_name:
            return published_checkpoint(name)
        uri = self._find()
        try:
            configuration = read_configuration(uri) if storage.is_folder(uri) else None
            if configuration:
                files = tuple(storage.join(uri, file) for file in configuration.weights)
            else:
                files = (uri,)
            return read_checkpoint(files, configuration, self.checkpoint_key)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"--model {self.model}: {str(error)[:500]}") from error

    def _find(self) -> str:
        if self.model == DEMO:
            return str(importlib.resources.files("clip_transforms") / "demo" / "demo.safetensors")
        try:
            exists = storage.exists(self.model)
        except NotImplementedError as error:  # hf:// without a repository
            raise CheckpointError(f"--model {self.model} names neither a file nor a folder: {error}") from error
        if not exists:
            names = {_fold(name): name for name in (*PUBLISHED, DEMO)}
            near = difflib.get_close_matches(_fold(self.model).replace("_", "-"), names, n=1)
            hint = f"; did you mean {names[near[0]]}?" if near else self._hub_hint()
            raise CheckpointError(
                f"--model {self.model} is neither a file nor a known model ({', '.join(PUBLISHED)}, {DEMO}){hint}"
            )
        return storage.normalise(self.model)

    def _hub_hint(self) -> str:
        """Return a hint if `model`, which is no file, looks like a repository of the Hugging Face hub."""
        if not _REPOSITORY.fullmatch(self.model) or storage.exists(self.model.partition("/")[0]):
            return ""
        return f"; did you mean hf://{self.model} (after pip install huggingface_hub)?"

    def _checked(self, found: Checkpoint) -> Checkpoint:
        """Return the checkpoint with its activation, which is never guessed."""
        if found.activation and self.activation and self.activation != found.activation:
            raise CheckpointError(
                f"--activation is {self.activation}, but {found.where} was trained with {found.activation}; omit the "
                "flag"
            )
        activation = found.activation or self.activation
        if not activation:
            raise CheckpointError(
                f"--model {self.model} does not say which activation it was trained with, and the wrong one gives "
                "wrong vectors without any error: give --activation quick_gelu (OpenAI's models and models fine-tuned "
                "from them) or --activation gelu (most of LAION's and DataComp's models)"
            )
        return dataclasses.replace(found, activation=activation)


def _fold(name: str) -> str:
    return name.lower().replace("/", "-")
