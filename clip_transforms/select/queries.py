"""Queries: texts, pictures, samples of the dataset, and embeddings. How they are checked and embedded."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.clip.decoders import ImageError
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.preprocess import EXIF_APPLIED, decode
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.parts.checkpoint import checkpoint_of
from clip_transforms.parts.counts import counted
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.manifest import existing_dataset
from clip_transforms.select.query_file import QueryError, read_query_file
from clip_transforms.select.sample_rows import find_samples, vectors_of

_LOGGER = logging.getLogger(__name__)
_BATCH = 256
_ROUNDING = 1e-3  # a vector of half precision may be so much longer or shorter than 1


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a user asks for: texts, files of pictures, names of samples, and a file of queries."""

    texts: tuple[str, ...]
    images: tuple[str, ...]
    samples: tuple[str, ...]
    file: str | None

    @classmethod
    def of(
        cls,
        text: str | Sequence[str] = (),
        image: storage.Places = (),
        like: str | Sequence[str] = (),
        queries: storage.Place | None = None,
    ) -> Asked:
        """Check the types; the arguments are those of `search_embeddings`.

        Raises:
            QueryError: if nothing is asked for, or a text is empty.
        """
        images = tuple(map(storage.normalise, storage.as_uris(image, "image"))) if image else ()
        file = None if queries is None else storage.normalise(storage.as_uri(queries, "queries"))
        asked = cls(storage.as_names(text, "text"), images, storage.as_names(like, "like"), file)
        if not (asked.texts or images or asked.samples or file):
            raise QueryError("nothing is asked for; give --text, --image, --like or --queries")
        if any(not one.strip() for one in asked.texts):
            raise QueryError("--text is an empty text; write what a caption would say")
        return asked

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the queries, as JSON values: only what was given."""
        given = {
            "text": list(self.texts),
            "image": [{"image": uri, "sha256": storage.sha256(uri)} for uri in self.images],
            "like": list(self.samples),
            "queries": {"queries": self.file, "sha256": storage.sha256(self.file)} if self.file else None,
        }
        return {name: value for name, value in given.items() if value}


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries that have been checked; `Queries.of` makes them.

    Attributes:
        names: how results call each of the q queries.
        texts: place → text, of the queries that the text tower embeds.
        pixels: place → uint8 [3, r, r], of those that the vision tower embeds.
        vectors: place → float32 [c, d] of all others, a vector for each of the c columns that are compared.
        checkpoint: what embeds; None if there are only vectors.
        shape: (c, d).
        identity: what decides the queries, as JSON values.
    """

    names: tuple[str, ...]
    texts: Mapping[int, str]
    pixels: Mapping[int, np.ndarray]
    vectors: Mapping[int, np.ndarray]
    checkpoint: Checkpoint | None
    shape: tuple[int, int]
    identity: Mapping[str, Any]

    @classmethod
    def of(
        cls, dataset: Dataset, columns: Sequence[str], asked: Asked, model: ClipSpec | storage.Place | None = None
    ) -> Queries:
        """Decode the pictures, look the samples up, and read the file.

        Args:
            dataset: the dataset.
            columns: the embeddings that are compared.
            asked: what is asked for.
            model: the dataset's checkpoint, if it was moved.
        Raises:
            QueryError: in one sentence.
        """
        of_file = read_query_file(asked.file, dataset.embed_dim) if asked.file else []
        checkpoint, c = None, len(columns)
        if asked.texts or asked.images or any(vector is None for _, vector in of_file):
            spec = None if model is None else ClipSpec.of(model)
            checkpoint = checkpoint_of(dataset.uri, existing_dataset(dataset.uri), spec)
        elif model is not None:
            raise QueryError(f"--model {model} embeds texts and pictures, but none are asked for; omit it")
        samples = zip(asked.samples, find_samples(dataset, asked.samples), strict=True)
        found: list[Any] = [
            *asked.texts,
            *(_pixels(uri, dataset, checkpoint) for uri in asked.images),
            *(_sample(dataset, name, row, columns) for name, row in samples),
            *(text if v is None else _repeated(v, c, f"--queries {asked.file}: {text}") for text, v in of_file),
        ]
        texts = {place: one for place, one in enumerate(found) if isinstance(one, str)}
        arrays = {place: one for place, one in enumerate(found) if not isinstance(one, str)}
        pixels = {place: one for place, one in arrays.items() if one.dtype == np.uint8}
        vectors = {place: one for place, one in arrays.items() if one.dtype != np.uint8}
        if checkpoint is not None:
            _warn_of_cut(list(texts.values()), checkpoint.preprocessing.context_length)
        names = (*asked.texts, *asked.images, *asked.samples, *(name for name, _ in of_file))
        return cls(names, texts, pixels, vectors, checkpoint, (c, dataset.embed_dim), asked.identity)

    def write(self, uri: str, scratch: str) -> None:
        """Write the queries into a file, for the worker that embeds them."""
        sink, places = io.BytesIO(), sorted(self.vectors)
        np.savez(
            sink,
            names=np.frombuffer(json.dumps(self.names).encode(), np.uint8),
            texts=np.frombuffer(json.dumps(sorted(self.texts.items())).encode(), np.uint8),
            image_places=np.array(sorted(self.pixels), np.int64),
            pixels=np.array([self.pixels[place] for place in sorted(self.pixels)], np.uint8),
            places=np.array(places, np.int64),
            vectors=np.array([self.vectors[place] for place in places], np.float32).reshape(len(places), *self.shape),
        )
        storage.write_bytes(uri, sink.getvalue(), scratch)


def read_names(uri: str) -> list[str]:
    """Return how results call the queries that `Queries.write` wrote."""
    with np.load(io.BytesIO(storage.read_bytes(uri))) as file:
        return json.loads(file["names"].tobytes())


def embed_queries(uri: str, checkpoint: Checkpoint | None, device: str = "auto") -> np.ndarray:
    """Embed the queries that `Queries.write` wrote, in fp32. Only the towers that are needed are loaded.

    Args:
        uri: URI of the file.
        checkpoint: what embeds.
        device: the device to embed on.
    Returns:
        float32 [q, c · d], whose products with the stored vectors of a row, side by side, are the mean of the c
        cosines.
    """
    with np.load(io.BytesIO(storage.read_bytes(uri))) as file:
        read = {name: file[name] for name in file.files}
    texts = json.loads(read["texts"].tobytes())
    count, (_, c, d) = len(texts) + len(read["image_places"]) + len(read["places"]), read["vectors"].shape
    found = np.empty((count, c, d), np.float32)
    found[read["places"]] = read["vectors"]
    if checkpoint is not None:
        from clip_transforms.clip.checkpoints import load_checkpoint  # imports torch, which is not always needed

        model = load_checkpoint(checkpoint, device, "fp32", vision=bool(len(read["pixels"])))
        for first in range(0, len(texts), _BATCH):
            places, some = zip(*texts[first : first + _BATCH], strict=True)
            found[list(places)] = model.embed_captions(some).numpy()[:, None]
        for first in range(0, len(read["pixels"]), _BATCH):
            of = slice(first, first + _BATCH)
            found[read["image_places"][of]] = model.embed_images(read["pixels"][of]).numpy()[:, None]
    return found.reshape(count, c * d) / np.float32(c)


def _warn_of_cut(texts: list[str], length: int) -> None:
    """Log one line about texts that the model does not read to their end."""
    cut = np.flatnonzero(default_tokenizer().tokenize(texts, length).truncated)
    if len(cut):
        others = f", and {counted(len(cut) - 1, 'other')}" if len(cut) > 1 else ""
        _LOGGER.warning("the text %r is cut at %d tokens%s", f"{texts[cut[0]][:40]}…", length, others)


def _pixels(uri: str, dataset: Dataset, checkpoint: Checkpoint | None) -> np.ndarray:
    """Decode a picture as the dataset's were."""
    assert checkpoint is not None
    turned = EXIF_APPLIED in existing_dataset(dataset.uri)["settings"].get("preprocessing", "")
    preprocessing = dataclasses.replace(checkpoint.preprocessing, exif_orientation="apply" if turned else "ignore")
    if not storage.exists(uri) or storage.is_folder(uri):
        raise QueryError(f"--image {uri} is no file; give the file of a picture")
    try:
        return decode(storage.read_bytes(uri), preprocessing).pixels
    except ImageError as error:
        raise QueryError(f"--image {uri} is no picture that can be read: {error}; give a JPEG or PNG") from error


def _sample(dataset: Dataset, name: str, row: tuple[str, int], columns: Sequence[str]) -> np.ndarray:
    vectors = vectors_of(dataset, row, columns)
    if vectors is None:
        lacking = " and ".join(column.partition("_")[0] for column in columns)
        raise QueryError(
            f"--like {name} lacks an embedding of its {lacking}; give another sample, or --against with what it has"
        )
    return np.concatenate([_of_length_1(vector, f"--like {name}") for vector in vectors])


def _repeated(vector: np.ndarray, count: int, name: str) -> np.ndarray:
    return np.repeat(_of_length_1(vector, name), count, axis=0)


def _of_length_1(vector: np.ndarray, name: str) -> np.ndarray:
    """Return an embedding [1, d] as it is if its length is 1 up to the rounding of float16, otherwise scaled to 1."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(vector).all():
        raise QueryError(f"{name} is an embedding that holds a null, NaN or infinity; leave it out")
    if not 0 < length < np.inf:
        raise QueryError(f"{name} is an embedding of length {length:g}, which has no direction; leave it out")
    return vector[None] if abs(length - 1) <= _ROUNDING else (vector / length).astype(np.float32)[None]
