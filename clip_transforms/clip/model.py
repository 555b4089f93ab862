"""ClipModel: two towers and a logit scale."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clip_transforms.clip.architectures import Architecture
from clip_transforms.clip.modified_resnet import ModifiedResNet
from clip_transforms.clip.preprocess import Preprocessing, decode
from clip_transforms.clip.text_transformer import TextTransformer
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.clip.vision_transformer import VisionTransformer


class ClipModel(nn.Module):
    """CLIP. `encode_*` returns features, with gradients; `embed_*` returns unit-length float32 embeddings on the CPU.

    Attributes:
        visual: the vision tower; None in a model that was loaded without it.
        text: the text tower.
        logit_scale: the published log parameter, a float32 scalar: logits are `logit_scale.exp()` times the cosine.
        precision: the precision of the towers' weights and sums, `fp32`, `bf16` or `fp16`; embeddings are always
            float32.
        overflows: the number of batches so far that did not fit into the range of fp16; see `embed_images`.
    """

    def __init__(self, architecture: Architecture, activation: str, preprocessing: Preprocessing | None = None):
        """Build both towers; weights come from `checkpoints.load` or from training.

        Args:
            architecture: the sizes.
            activation: `quick_gelu` or `gelu`.
            preprocessing: the preprocessing of images and captions; by default the published one.
        """
        super().__init__()
        self.architecture = architecture
        self.activation = activation
        self.preprocessing = preprocessing or Preprocessing(
            architecture.image_side, context_length=architecture.context_length
        )
        self.precision = "fp32"
        self.overflows = 0
        self.visual: ModifiedResNet | VisionTransformer | None = (
            ModifiedResNet(architecture) if architecture.is_resnet else VisionTransformer(architecture, activation)
        )
        self.text = TextTransformer(architecture, activation)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def image_side(self) -> int:
        """r, the side in pixels of the images that `embed_images` takes."""
        return self.architecture.image_side

    @property
    def embed_dim(self) -> int:
        """d, the length of an embedding."""
        return self.architecture.embed_dim

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.logit_scale.device

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [n, 3, r, r] → features [n, d], not scaled."""
        if self.visual is None:
            raise ValueError("this model was loaded without its vision tower; load it with vision=True")
        return self.visual(pixels, self.preprocessing.mean, self.preprocessing.std)

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int32 [n, t] → features [n, d], not scaled."""
        return self.text(tokens)

    def decode_image(self, data: bytes) -> np.ndarray:
        """Decode one image to pixels, uint8 [3, r, r], as this checkpoint needs them; see `preprocess.decode_image`."""
        return decode(data, self.preprocessing).pixels

    @torch.inference_mode()
    def embed_images(
        self, pixels: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray], *, on_device: bool = False
    ) -> torch.Tensor:
        """Embed images. In fp16 a batch with an embedding that is not finite is embedded again in fp32.

        Args:
            pixels: uint8 [n, 3, r, r], RGB, 0 to 255, or a list of n such images, or one image [3, r, r]. Pixels are
                normalised here, on the device.
            on_device: whether to return at once, with embeddings that a GPU may still compute. They stay there, and
                may have overflowed.
        Returns:
            float32 [n, d], on the CPU unless `on_device`; every row has length 1.
        Raises:
            ValueError: if the shape or dtype is wrong, r is not this model's image side, or there is no vision tower.
        """
        if isinstance(pixels, (list, tuple)):
            images = [self._pixels(image) for image in pixels]
            pixels = torch.cat(images) if images else torch.empty((0, *self._shape), dtype=torch.uint8)
        pixels = self._pixels(pixels)
        embeddings = _unit(self.encode_images(self._there(pixels)))
        return embeddings if on_device else self._finished(embeddings, lambda wide: wide.embed_images(pixels))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (3, self.image_side, self.image_side)

    def _pixels(self, pixels: object) -> torch.Tensor:
        """Check a batch of images, or one image, and return it as uint8 [n, 3, r, r]."""
        if not isinstance(pixels, (torch.Tensor, np.ndarray)):
            raise ValueError(
                f"pixels are {type(pixels).__name__}, but this model takes uint8 arrays: model.decode_image(data) "
                "makes one from an image file's bytes"
            )
        # Torch does not accept arrays with negative strides, such as pictures mirrored by [..., ::-1]; copy those.
        pixels = torch.as_tensor(np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else pixels)
        batch = pixels[None] if pixels.ndim == 3 else pixels
        if batch.dtype != torch.uint8 or batch.ndim != 4 or tuple(batch.shape[1:]) != self._shape:
            raise ValueError(
                f"pixels are {str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}, but this model takes "
                f"uint8 [n, {', '.join(map(str, self._shape))}]: model.decode_image(data) makes one image"
            )
        return batch

    def embed_captions(self, captions: str | Sequence[str]) -> torch.Tensor:
        """Embed captions.

        Args:
            captions: one text or several; a caption longer than the context length is cut.
        Returns:
            float32 [n, d] on the CPU; every row has length 1.
        Raises:
            TypeError: if a caption is not a str.
        """
        texts = list(captions) if isinstance(captions, Iterable) and not isinstance(captions, str) else [captions]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"captions are {captions!r:.60}, but this model takes one str or several")
        return self.embed_tokens(default_tokenizer().tokenize(texts, self.architecture.context_length).ids)

    @torch.inference_mode()
    def embed_tokens(self, tokens: torch.Tensor | np.ndarray, *, on_device: bool = False) -> torch.Tensor:
        """Embed captions that are tokenized already; of fp16 the same holds as of images.

        Args:
            tokens: int32 [n, t] with start and end tokens, padded with zeros; t is at most the context length.
            on_device: as of `embed_images`.
        Returns:
            float32 [n, d], on the CPU unless `on_device`; every row has length 1.
        Raises:
            ValueError: if the shape or dtype is wrong.
        """
        tokens, most = torch.as_tensor(tokens), self.architecture.context_length
        if tokens.ndim != 2 or tokens.shape[1] > most or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"tokens are {str(tokens.dtype).removeprefix('torch.')} {list(tokens.shape)}, but this model takes "
                f"int32 [n, t] with t at most {most}: Tokenizer().tokenize(captions).ids makes them"
            )
        embeddings = _unit(self.encode_tokens(self._there(tokens)))
        return embeddings if on_device else self._finished(embeddings, lambda wide: wide.embed_tokens(tokens))

    def _there(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.to(self.device, non_blocking=True)

    def _finished(self, embeddings: torch.Tensor, again: Callable[[ClipModel], torch.Tensor]) -> torch.Tensor:
        """Return embeddings on the CPU; `again` makes them with a wider model if they overflowed."""
        embeddings = embeddings.cpu()
        if self.precision != "fp16" or embeddings.isfinite().all():
            return embeddings
        self.overflows += 1
        return again(self._wide)

    @functools.cached_property
    def _wide(self) -> ClipModel:
        """The same model in fp32, which holds every value of fp16; it is made when a batch first overflows."""
        wide = copy.deepcopy(self).float()
        wide.precision = "fp32"
        return wide


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=-1)
