"""ClipSpec: the choice of checkpoint, precision and device. Pure Python, so that the launcher needs no torch."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence

from clip_transforms import storage
from clip_transforms.clip.architectures import PUBLISHED, Architecture
from clip_transforms.clip.configurations import Configuration, read_configuration
from clip_transforms.clip.layouts import OPENAI, TensorSource, recognise, shape_of
from clip_transforms.clip.preprocess import Preprocessing
from clip_transforms.clip.tensor_shapes import architecture_of
from clip_transforms.clip.torch_archive import ArchiveError, StoredTensor
from clip_transforms.clip.weights_file import read_weights_file

ACTIVATIONS = ("quick_gelu", "gelu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
BATCH_SIZES = {"cpu": 32, "cuda": 256}  # the usual number of pictures in a batch, by device
DEMO = "demo"
# owner/name, as the Hugging Face hub names a repository; not the path of a file of weights.
_REPOSITORY = re.compile(r"[\w-][\w.-]*/(?!.*\.(?:pt|pth|bin|ckpt|safetensors)$)[\w.-]+")
_MODEL = "a text, a Path or a ClipSpec"


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
            return _published(name)
        uri = self._find()
        try:
            configuration = read_configuration(uri) if storage.is_folder(uri) else None
            if configuration:
                files = tuple(storage.join(uri, file) for file in configuration.weights)
            else:
                files = (uri,)
            return _read(files, configuration, self.checkpoint_key)
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


def _published(name: str) -> Checkpoint:
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


def _read(files: Sequence[str], configuration: Configuration | None, key: str | None) -> Checkpoint:
    """Recognise a checkpoint by its files; the activation is empty if they do not name it."""
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
