"""Inputs of the benchmarks: pictures that decode like photographs, captions like those of the web, shards, weights."""

from __future__ import annotations

import csv
import functools
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.published import published, published_module
from clip_transforms.clip.architectures import PUBLISHED, Architecture
from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import DEMO
from clip_transforms.clip.tokenizer import CONTEXT_LENGTH, default_tokenizer

# The number of tokens in a web caption, including start and end, is lognormal with this median and sigma, clipped to 3
# and 77. The mean is 14, and one caption in twenty has more than 32.
MEDIAN_TOKENS, SIGMA = 12, 0.6
QUALITY = 90  # of the JPEGs
Sample = tuple[str, bytes, str]


def photographs(count: int, width: int, height: int, seed: int = 0) -> list[bytes]:
    """Make JPEGs with the spectrum of photographs, about 2 bits per pixel, so that decoding costs as much."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    frequency[0, 0] = np.inf  # removes the mean
    return [_photograph(rng, frequency, (height, width)) for _ in range(count)]


def _photograph(rng: np.random.Generator, frequency: np.ndarray, shape: tuple[int, int]) -> bytes:
    channels = []
    for steepness, deviation in ((1.5, 50), (1.9, 15), (1.9, 15)):  # one channel of luminance, two of colour
        phases = np.exp(2j * np.pi * rng.random(frequency.shape))
        plane = np.fft.irfft2(phases / frequency**steepness, shape)
        channels.append(np.clip(128 + deviation * plane / plane.std(), 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1), "YCbCr").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def web_captions(count: int, seed: int = 0) -> list[str]:
    """Make distinct captions of real words with one token each; see above for their lengths."""
    rng, words = np.random.default_rng(seed), _words()
    lengths = np.clip(np.rint(rng.lognormal(np.log(MEDIAN_TOKENS), SIGMA, count)), 3, CONTEXT_LENGTH).astype(int)
    found: dict[str, None] = {}
    for length in lengths:
        while (caption := " ".join(words[i] for i in rng.integers(len(words), size=length - 2))) in found:
            pass
        found[caption] = None
    return list(found)


@functools.lru_cache(maxsize=1)
def _words() -> list[str]:
    """Return the words in CLIP's vocabulary, the most frequent first."""
    ends = (symbol.removesuffix("</w>") for symbol in default_tokenizer()._ids if symbol.endswith("</w>"))
    return [word for word in ends if len(word) > 2 and word.isascii() and word.isalpha()]


def samples(count: int, images: Sequence[bytes], first: int = 0) -> Iterator[Sample]:
    """Yield (key, picture, caption); pictures repeat in turn, captions do not."""
    for i, caption in enumerate(web_captions(count, seed=first), start=first):
        yield f"{i:08d}", images[i % len(images)], caption


def write_tar(path: Path, pairs: Iterator[Sample]) -> Path:
    """Write a webdataset tar, gzipped if its name ends in .gz."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for key, image, caption in pairs:
            for name, data in ((f"{key}.jpg", image), (f"{key}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_tars(folder: Path, shards: int, of_each: int, images: Sequence[bytes]) -> Path:
    """Write a folder of tars with different samples in each."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        write_tar(folder / f"{shard:05d}.tar", samples(of_each, images, first=shard * of_each))
    return folder


def write_parquet(path: Path, pairs: Iterator[Sample], row_group: int) -> Path:
    """Write a Parquet file with image bytes."""
    keys, images, captions = zip(*pairs, strict=True)
    table = pa.table({"key": keys, "image": pa.array(images, pa.binary()), "caption": captions})
    pq.write_table(table, path, row_group_size=row_group, use_dictionary=["key", "caption"])
    return path


def write_folder(folder: Path, pairs: Iterator[Sample]) -> Path:
    """Write a folder of pictures with a text file beside each."""
    folder.mkdir(parents=True)
    for key, image, caption in pairs:
        (folder / f"{key}.jpg").write_bytes(image)
        (folder / f"{key}.txt").write_text(caption)
    return folder


def write_listing(folder: Path, pairs: Iterator[Sample]) -> Path:
    """Write a CSV, and the pictures that it names in a folder beside it."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    with open(folder / "listing.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption"])
        for key, image, caption in pairs:
            (pictures / f"{key}.jpg").write_bytes(image)
            rows.writerow([f"pictures/{key}.jpg", caption])
    return folder / "listing.csv"


def architecture_of(model: str) -> Architecture:
    """Return the architecture of a published model, or of `demo`."""
    return load(DEMO, "cpu").architecture if model == DEMO else PUBLISHED[model].architecture


def random_checkpoint(folder: Path, model: str) -> Path:
    """Write weights at random, initialised as published and in the precisions of the published files."""
    torch.manual_seed(0)
    theirs = published(architecture_of(model))
    published_module("model").convert_weights(theirs)
    path = folder / "random.pt"
    torch.save(theirs.state_dict(), path)
    return path


def model_flags(folder: Path, model: str) -> list[str]:
    """Return the flags with which `pipelines.embed` uses a published model with random weights, or the demo model."""
    if model == DEMO:
        return ["--model", DEMO]
    return ["--model", str(random_checkpoint(folder, model)), "--activation", "quick_gelu"]
