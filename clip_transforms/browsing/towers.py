"""The model behind a page: loaded when it is needed, in the background, and once."""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import TYPE_CHECKING

import numpy as np

from clip_transforms.browsing.plan import BrowsePlan
from clip_transforms.browsing.question import QuestionError
from clip_transforms.clip.decoders import ImageError
from clip_transforms.clip.preprocess import decode
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.parts.checkpoint import checkpoint_of

if TYPE_CHECKING:
    from clip_transforms.clip.model import ClipModel

_TEXTS = 256  # embeddings of texts that are kept


class Towers:
    """Embeds the words and the pictures that a page asks for; the text tower alone until there is a picture."""

    def __init__(self, plan: BrowsePlan):
        """Load nothing yet."""
        self._plan = plan
        self._lock = threading.Lock()
        self._model: ClipModel | None = None
        self._sees = False
        self._texts: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self.failure = ""

    @property
    def is_ready(self) -> bool:
        """Whether words can be embedded at once."""
        return self._model is not None

    def load(self, vision: bool) -> ClipModel:
        """Load the model if that was not done yet.

        Raises:
            QuestionError: if the checkpoint is gone, or is another one now.
        """
        with self._lock:
            if self._model is not None and (self._sees or not vision):
                return self._model
            from clip_transforms.clip.checkpoints import load_checkpoint  # imports torch, which takes a second

            try:
                checkpoint = checkpoint_of(self._plan.dataset.uri, self._plan.made, self._plan.model)
                self._model = load_checkpoint(checkpoint, "auto", "fp32", vision=vision)
            except (ValueError, OSError) as error:
                self.failure = f"{error}; if the model was moved, start browse again with --model"
                raise QuestionError(f"words and pictures cannot be searched for: {self.failure}", "text") from error
            self._sees, self.failure = vision, ""
            return self._model

    def of_text(self, text: str) -> tuple[np.ndarray, bool]:
        """Embed words: float32 [d], and whether the model does not read them to their end."""
        model = self.load(vision=False)
        length = model.preprocessing.context_length
        cut = bool(default_tokenizer().tokenize([text], length).truncated[0])
        with self._lock:
            vector = self._texts.pop(text, None)
            if vector is None:
                vector = model.embed_captions([text]).numpy()[0]
            self._texts[text] = vector
            if len(self._texts) > _TEXTS:
                self._texts.popitem(last=False)
        return vector, cut

    def of_picture(self, data: bytes) -> np.ndarray:
        """Decode a picture under the dataset's limits and embed it: float32 [d].

        Raises:
            QuestionError: if it is no picture that can be read.
        """
        model = self.load(vision=True)
        how = dataclasses.replace(model.preprocessing, exif_orientation=self._plan.exif_orientation)
        try:
            pixels = decode(data, how, self._plan.max_pixels).pixels
        except ImageError as error:
            raise QuestionError(
                f"that is no picture that can be read: {error}; give a JPEG or PNG", "picture"
            ) from error
        with self._lock:
            return model.embed_images(pixels[None]).numpy()[0]
