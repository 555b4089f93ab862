"""Measure how faster precisions change embeddings: `python -m benchmarks.fidelity --photos FOLDER`.

The demo model embeds 1,000 drawn scenes, and 1,000 random crops of the photographs in FOLDER, in fp32 and in the other
precisions. The benchmark prints the worst and median cosine with the fp32 embeddings, and how many top-1 labels over
the demo's 48 classes change. It then prints how far an embedding moves with the batch size, the order within the batch
and the padding.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.preprocess import decode
from clip_transforms.demo.scenes import CLASSES, draw_scene, encode_scene, random_scene

COUNT, BATCH = 1_000, 32
PRECISIONS = ("fp32", "bf16", "fp16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="demo", help="checkpoint (%(default)s)")
    parser.add_argument("--photos", type=Path, help="folder with .jpg photographs")
    options = parser.parse_args()
    models = {p: load(options.model, "cpu", precision=p) for p in PRECISIONS}
    amx = torch.cpu.get_capabilities().get("amx_bf16")
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, AMX {'yes' if amx else 'no'}, CPU")
    rng = np.random.default_rng(0)
    exact = models["fp32"]
    scenes = [random_scene(rng) for _ in range(COUNT)]
    pictures = {"drawn scenes": np.stack([exact.decode_image(encode_scene(draw_scene(s, rng))) for s in scenes])}
    if options.photos:
        pictures["crops of photographs"] = np.stack([exact.decode_image(data) for data in _crops(options.photos, rng)])
        _report_fast_decode(list(_photos(options.photos)), exact)
    classes = exact.embed_captions([f"a {name}" for name in CLASSES])
    for what, pixels in pictures.items():
        _report(what, models, lambda m, pixels=pixels: _images(m, pixels, BATCH), classes)
    captions = [scene.caption(i % 7) for i, scene in enumerate(scenes)]
    _report("captions", models, lambda m: _captions(m, captions, BATCH), None)
    for precision, model in models.items():
        print(
            f"{precision}: a batch moves an embedding by at most {_spread(model, pictures['drawn scenes'], captions)}"
        )


def _crops(folder: Path, rng: np.random.Generator):
    """Yield random crops as JPEG, each at least half as wide and half as high as its photograph."""
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    for i in range(COUNT):
        photo = photos[i % len(photos)]
        w, h = (int(length * rng.uniform(0.5, 1)) for length in photo.size)
        left, top = rng.integers(0, photo.width - w + 1), rng.integers(0, photo.height - h + 1)
        buffer = io.BytesIO()
        photo.crop((left, top, left + w, top + h)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def _photos(folder: Path):
    """Yield the photographs in their own and smaller sizes, so that their scale takes many values from 1/1 to 1/8."""
    for path in sorted(folder.glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        for percent in range(100, 20, -2):
            buffer = io.BytesIO()
            size = [max(1, length * percent // 100) for length in photo.size]
            photo.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
            yield buffer.getvalue()


def _report_fast_decode(photos: list[bytes], model) -> None:
    """Print how `--fast_decode` changes the pixels, at the demo's side and at 224."""
    for side in (model.image_side, 224):
        usual = dataclasses.replace(model.preprocessing, side=side)
        fast = dataclasses.replace(usual, fast_decode=True)
        seconds, pixels = [], []
        for preprocessing in (usual, fast):
            start = time.perf_counter()
            pixels.append(np.stack([decode(photo, preprocessing).pixels for photo in photos]))
            seconds.append(time.perf_counter() - start)
        levels = np.abs(pixels[0].astype(int) - pixels[1]).mean(axis=(1, 2, 3))
        line = f"--fast_decode, {len(photos)} photographs at side {side}: {seconds[0] / seconds[1]:.1f} times as fast, "
        line += f"pixels differ by {np.median(levels):.2f} of 255 in the median, {levels.max():.2f} at worst"
        if side == model.image_side:
            a, b = (_images(model, p, BATCH) for p in pixels)
            cosines = (a * b).sum(dim=1)
            line += f"; cosine worst {cosines.min():.6f}, median {cosines.median():.6f}"
        print(line)


def _images(model, pixels: np.ndarray, size: int) -> torch.Tensor:
    return torch.cat([model.embed_images(pixels[i : i + size]) for i in range(0, len(pixels), size)])


def _captions(model, captions: list[str], size: int) -> torch.Tensor:
    return torch.cat([model.embed_captions(captions[i : i + size]) for i in range(0, len(captions), size)])


def _report(what: str, models: dict, embed, classes: torch.Tensor | None) -> None:
    exact = embed(models["fp32"])
    for precision in PRECISIONS[1:]:
        found = embed(models[precision])
        cosines = (exact * found).sum(dim=1)
        line = f"{what}, {precision}: cosine with fp32 worst {cosines.min():.6f}, median {cosines.median():.6f}"
        if classes is not None:
            changed = ((exact @ classes.T).argmax(dim=1) != (found @ classes.T).argmax(dim=1)).sum()
            line += f"; top-1 labels changed: {changed} of {len(exact):,}"
        print(line)


def _spread(model, pixels: np.ndarray, captions: list[str]) -> str:
    """Return the largest distance between embeddings of the same samples in different batches."""
    pixels, captions = pixels[:96], captions[:96]
    images = [_images(model, pixels, 32), _images(model, pixels, 7), _images(model, pixels[::-1].copy(), 32).flip(0)]
    texts = [_captions(model, captions, size) for size in (96, 7, 1)]
    texts.append(_captions(model, ["a caption that is far longer than all of the others " * 3, *captions], 97)[1:])
    far = [max((other - group[0]).norm(dim=1).max() for other in group[1:]) for group in (images, texts)]
    return f"{far[0]:.1e} (images), {far[1]:.1e} (captions)"


if __name__ == "__main__":
    main()
