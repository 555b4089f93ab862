"""The sizes that define a CLIP, and a table of the published models' sizes. Pure Python.

Sizes: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", tables 18 to 20.
"""

from __future__ import annotations

import dataclasses

HEAD_WIDTH = 64  # every attention head of every published tower is 64 wide
RESNET_EXPANSION = 32  # the input of a ResNet's attention pool is 32 times as wide as its first stage
URL_ROOT = "https://openaipublic.azureedge.net/clip/models"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes that define one CLIP.

    Attributes:
        embed_dim: d, the length of an embedding.
        image_side: r, the side in pixels of the square images that the vision tower takes.
        vision_layers: the depth of a Vision Transformer, or the four block counts of a ResNet.
        vision_width: the width of the Vision Transformer, or of the ResNet's first stage.
        patch_size: the side of a patch in pixels; None for a ResNet.
        text_width: the width of the text transformer.
        text_layers: the depth of the text transformer.
        context_length: the largest number of tokens in a caption, including start and end.
        vocab_size: the number of entries in the byte-pair vocabulary.
        vision_head_width, text_head_width: the width of an attention head; no tensor shows it.
        vision_mlp_width, text_mlp_width: the inner width of a block's MLP; None for four times the tower's width.
    """

    embed_dim: int
    image_side: int
    vision_layers: int | tuple[int, int, int, int]
    vision_width: int
    patch_size: int | None
    text_width: int
    text_layers: int = 12
    context_length: int = 77
    vocab_size: int = 49408
    vision_head_width: int = HEAD_WIDTH
    text_head_width: int = HEAD_WIDTH
    vision_mlp_width: int | None = None
    text_mlp_width: int | None = None

    @property
    def is_resnet(self) -> bool:
        """Return whether the vision tower is a modified ResNet."""
        return self.patch_size is None

    @property
    def vision_heads(self) -> int:
        """The number of heads in the vision transformer, or in the ResNet's attention pool."""
        return self.vision_width * (RESNET_EXPANSION if self.is_resnet else 1) // self.vision_head_width

    @property
    def text_heads(self) -> int:
        """The number of heads in the text transformer."""
        return self.text_width // self.text_head_width

    def describe(self) -> str:
        """Return one line that names every size."""
        vision = (
            f"ResNet {self.vision_layers}, width {self.vision_width}"
            if self.is_resnet
            else f"ViT/{self.patch_size}, width {self.vision_width}, {self.vision_layers} layers"
        )
        mlps = [
            f", {tower} mlp {width}"
            for tower, width in (("vision", self.vision_mlp_width), ("text", self.text_mlp_width))
            if width
        ]
        return (
            f"{vision}, {self.vision_heads} heads, side {self.image_side}; text width {self.text_width}, "
            f"{self.text_layers} layers, {self.text_heads} heads, {self.context_length} tokens{''.join(mlps)}; "
            f"d {self.embed_dim}"
        )


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint that OpenAI published: its sizes, file name and SHA-256. They all use QuickGELU."""

    architecture: Architecture
    file: str
    sha256: str

    @property
    def url(self) -> str:
        """The URL at which the file is published."""
        return f"{URL_ROOT}/{self.sha256}/{self.file}"


def _resnet(d: int, r: int, layers: tuple[int, int, int, int], width: int, text_width: int) -> Architecture:
    return Architecture(d, r, layers, width, None, text_width)


PUBLISHED: dict[str, Published] = {
    "RN50": Published(
        _resnet(1024, 224, (3, 4, 6, 3), 64, 512),
        "RN50.pt",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    ),
    "RN101": Published(
        _resnet(512, 224, (3, 4, 23, 3), 64, 512),
        "RN101.pt",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    ),
    "RN50x4": Published(
        _resnet(640, 288, (4, 6, 10, 6), 80, 640),
        "RN50x4.pt",
        "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    ),
    "RN50x16": Published(
        _resnet(768, 384, (6, 8, 18, 8), 96, 768),
        "RN50x16.pt",
        "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    ),
    "RN50x64": Published(
        _resnet(1024, 448, (3, 15, 36, 10), 128, 1024),
        "RN50x64.pt",
        "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    ),
    "ViT-B/32": Published(
        Architecture(512, 224, 12, 768, 32, 512),
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "ViT-B/16": Published(
        Architecture(512, 224, 12, 768, 16, 512),
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
    "ViT-L/14": Published(
        Architecture(768, 224, 24, 1024, 14, 768),
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    "ViT-L/14@336px": Published(
        Architecture(768, 336, 24, 1024, 14, 768),
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
}
