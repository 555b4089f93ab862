"""Checkpoint: a CLIP that was found, with everything that decides its numbers, and how its files tell it.

Pure Python, so that the launcher needs no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from clip_transforms import storage
from clip_transforms.clip.architectures import PUBLISHED, Architecture
from clip_transforms.clip.configurations import Configuration
from clip_transforms.clip.layouts import OPENAI, TensorSource, recognise, shape_of
from clip_transforms.clip.preprocess import Preprocessing
from clip_transforms.clip.tensor_shapes import architecture_of
from clip_transforms.clip.torch_archive import ArchiveError, StoredTensor
from clip_transforms.clip.weights_file import read_weights_file

ACTIVATIONS = ("quick_gelu", "gelu")


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read or trusted; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint, with everything that decides its numbers.

    Attributes:
        files: the URIs of the weights. For a published model, the URL of publication; workers read their cache.
        sha256: the hash of the file in hex, or a hash of several files' hashes. It is verified again when the weights
            are read.
        activation: `quick_gelu` or `gelu`.
        architecture: the sizes.
        preprocessing: the preprocessing of images and captions.
        layout: the library whose tensor names the file uses.
        recognised_by: the evidence for the activation, for a person to read.
        published: the published name, if the model was asked for by name.
        key: the start of the names of the weights, if one was given; see `layouts.recognise`.
    """

    files: tuple[str, ...]
    sha256: str
    activation: str
    architecture: Architecture
    preprocessing: Preprocessing
    layout: str
    recognised_by: str
    published: str | None = None
    key: str | None = None

    @property
    def identity(self) -> str:
        """What says that two checkpoints have the same weights: the SHA-256, and the key if there is one."""
        return f"{self.sha256}, {self.key}" if self.key else self.sha256

    @property
    def where(self) -> str:
        """The checkpoint's name in a message."""
        return self.published or self.files[0]


def published_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint of a published name, such as `ViT-B/32`; no file is read."""
    known = PUBLISHED[name]
    return Checkpoint(
        files=(known.url,),
        sha256=known.sha256,
        activation="quick_gelu",
        architecture=known.architecture,
        preprocessing=Preprocessing(known.architecture.image_side, context_length=known.architecture.context_length),
        layout=OPENAI,
        recognised_by="its name",
        published=name,
    )


def read_checkpoint(files: Sequence[str], configuration: Configuration | None, key: str | None) -> Checkpoint:
    """Recognise a checkpoint by its files; the activation is empty if they do not name it.

    Args:
        files: the URIs of the weights.
        configuration: the configuration beside them, if there is one.
        key: the start of the names of the weights, if one was given; see `layouts.recognise`.
    Raises:
        ValueError: if they hold no CLIP, or if their sizes, their configuration or their activation are wrong.
    """
    tensors: dict[str, StoredTensor] = {}
    hashes, kinds = [], []
    metadata: dict[str, str] = {}
    passed_over: dict[str, str] = {}
    for uri in files:
        with storage.local_copy(uri) as path:
            hashes.append(storage.sha256(path))
            with open(path, "rb") as file:
                try:
                    weights = read_weights_file(file)
                except ArchiveError as error:
                    raise ArchiveError(f"{uri}: {error}") from error
        tensors |= weights.tensors
        kinds.append(weights.kind)
        metadata |= weights.metadata
        passed_over |= weights.passed_over
    try:
        layout, sources = recognise(tensors, key)
        _check_numbers(sources, tensors)
        architecture = architecture_of(
            _shapes(sources, tensors),
            configuration.vision_head_width if configuration else None,
            configuration.text_head_width if configuration else None,
        )
    except ValueError as error:
        if passed_over:  # it may be the cause: a weight that was not read is missing
            raise ValueError(f"{error}; {_most_telling(passed_over, str(error))}") from error
        raise
    digest = combined_sha256(hashes)
    known = next((name for name, published in PUBLISHED.items() if published.sha256 == digest), None)
    activation, recognised_by = _activation(known, configuration, metadata, kinds[0])
    plain = Preprocessing(architecture.image_side, context_length=architecture.context_length)
    preprocessing = configuration.preprocessing if configuration else plain
    if configuration:
        _check_sizes(configuration, architecture)
    return Checkpoint(tuple(files), digest, activation, architecture, preprocessing, layout, recognised_by, key=key)


def _most_telling(passed_over: Mapping[str, str], error: str) -> str:
    """Return the sentence about the entry whose name the error mentions, else about the first."""
    words = tuple(word for word in error.split() if "." in word)
    named = (sentence for name, sentence in passed_over.items() if name.endswith(words))
    return next(named, next(iter(passed_over.values())))


def _check_numbers(sources: Mapping[str, TensorSource], tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse integer weights: a quantised model's weights mean nothing without their scales."""
    for name in (name for source in sources.values() for name in source.names):
        if "float" not in tensors[name].dtype:
            raise ValueError(
                f"{name} holds {tensors[name].dtype}, but weights must be floating point; give the checkpoint as it "
                "was before quantisation"
            )


def _check_sizes(configuration: Configuration, architecture: Architecture) -> None:
    """Refuse a configuration whose sizes differ from those of the weights."""
    found = dataclasses.asdict(architecture)
    for tower in ("vision", "text"):
        found[f"{tower}_mlp_width"] = found[f"{tower}_mlp_width"] or 4 * found[f"{tower}_width"]
    preprocessing = configuration.preprocessing
    of_input = {"image_side": preprocessing.side, "context_length": preprocessing.context_length}
    for name, said in {**of_input, **configuration.sizes}.items():
        if said is not None and said != found[name]:
            raise ValueError(
                f"its configuration says {name.replace('_', ' ')} {said}, but its tensors are for {found[name]}"
            )


def _shapes(sources: Mapping[str, TensorSource], tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = {name: shape_of(source, shapes) for name, source in sources.items()}
    if found.get("logit_scale") == (1,):  # open_clip's nonscalar_logit_scale and some training code store this shape
        found["logit_scale"] = ()
    return found


def _activation(
    known: str | None, configuration: Configuration | None, metadata: Mapping[str, str], kind: str
) -> tuple[str, str]:
    """Return the activation that the files name, empty if they name none, and the evidence for it."""
    if known:
        return "quick_gelu", f"the SHA-256 of OpenAI's {known}"
    if configuration:
        return configuration.activation, f"{configuration.origin} beside it"
    said = metadata.get("activation", "")
    if said and said not in ACTIVATIONS:
        raise ValueError(f"it names the activation {said!r}, but it must be {' or '.join(ACTIVATIONS)}")
    return said, f"the names and shapes of its tensors ({kind}{', whose header names the activation' if said else ''})"


def combined_sha256(hashes: Sequence[str]) -> str:
    """Return the only hash, or a hash of several hashes."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
