"""ClipModelHandler: CLIP for Beam's own `RunInference`, over pictures and captions that a pipeline holds already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms import storage
from clip_transforms.clip.checkpoints import load_checkpoint
from clip_transforms.clip.decoders import ImageError, set_up_decoders
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.engine.stored import NOT_FINITE
from clip_transforms.run.beam import beam  # noqa: F401  first, since it keeps Beam's warnings quiet

from apache_beam.ml.inference.base import ModelHandler, PredictionResult  # isort: skip


class ClipModelHandler(ModelHandler[bytes | str, PredictionResult, ClipModel]):
    """Encoded pictures (bytes) and captions (str) → PredictionResult with the embedding, float32 [d] of length 1.

    `RunInference(ClipModelHandler("ViT-B/32"))` takes a PCollection of either, or of both. An element that cannot be
    embedded has an exception in place of its embedding, an `ImageError` with its `reason` if it is a picture; the other
    elements of its batch are embedded.

    `EmbedShards` is faster if the samples lie in shards. It reads and decodes the next batches while the model
    computes, groups captions by length, and sends names between workers, where `RunInference` sends whole pictures.
    Here each batch is decoded, then embedded, and nothing overlaps.
    """

    def __init__(self, model: ClipSpec | storage.Place, batch_size: int = 64):
        """Find the checkpoint; each worker loads it once.

        Args:
            model: a ClipSpec, or a text or a Path for one with its usual settings.
            batch_size: the most pictures and captions in a batch, 1 or more.
        Raises:
            ValueError: or one of its subclasses, in one sentence, if the checkpoint or the batch size is wrong.
        """
        if storage.as_setting(batch_size, "batch_size", "int") < 1:
            raise ValueError(f"batch_size is {batch_size}, but it must be 1 or more")
        super().__init__(max_batch_size=batch_size)
        self._spec = ClipSpec.of(model)
        self._checkpoint = self._spec.resolve()

    def load_model(self) -> ClipModel:
        """Load the checkpoint, and verify that it is the one that was found."""
        set_up_decoders()
        return load_checkpoint(self._checkpoint, self._spec.device, self._spec.precision)

    def run_inference(
        self, batch: Sequence[bytes | str], model: ClipModel, inference_args: Mapping[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        """Embed the pictures of a batch, and its captions; one result for each element, in order.

        Raises:
            TypeError: if an element is neither bytes nor str.
        """
        found: list[Any] = [_decoded(element, model) if isinstance(element, bytes) else element for element in batch]
        pictures = [place for place, pixels in enumerate(found) if isinstance(pixels, np.ndarray)]
        captions = [place for place, element in enumerate(batch) if not isinstance(element, bytes)]
        for places, embed in ((pictures, model.embed_images), (captions, model.embed_captions)):
            for place, embedding in zip(places, embed([found[place] for place in places]).numpy(), strict=True):
                found[place] = embedding if np.isfinite(embedding).all() else ValueError(NOT_FINITE[1])
        return (PredictionResult(element, result) for element, result in zip(batch, found, strict=True))

    def get_num_bytes(self, batch: Sequence[bytes | str]) -> int:
        """Return the size of a batch in bytes, and of texts in characters; Beam's own way would pickle the batch."""
        return sum(map(len, batch))


def _decoded(data: bytes, model: ClipModel) -> np.ndarray | ImageError:
    try:
        return model.decode_image(data)
    except ImageError as error:
        return error
