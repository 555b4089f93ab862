"""Compare captions grouped by length with captions padded to 77 tokens: `python -m benchmarks.captions`.

The lengths are those of web captions: lognormal, with a median of 12 tokens (including start and end) and a sigma of
0.6, clipped to 3 and 77. No two captions are equal. Our side runs `Embedder.forward`, as in a run: it sorts captions by
length within a window, batches them by a budget of tokens, and restores the order. The padded side runs batches of
32 × 77 tokens through the same model, and through the published module in fp32. It embeds fewer captions per round,
since each costs the same. No side includes tokenizing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.inputs import architecture_of, web_captions
from benchmarks.machine import interleaved, print_facts
from benchmarks.published import published
from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.model_spec import PRECISIONS
from clip_transforms.clip.tokenizer import default_tokenizer
from clip_transforms.engine.decode import DecodedBatch
from clip_transforms.engine.forward import Embedder
from schemas.samples import samples_schema

BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="ViT-B/32", help="published name, or demo, that gives the sizes (%(default)s)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="precision of our model (%(default)s)")
    parser.add_argument(
        "--captions", type=int, default=2048, help="captions per round, grouped; a window holds 2,048 (%(default)s)"
    )
    parser.add_argument("--padded", type=int, default=64, help="captions per round, padded (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds (%(default)s)")
    options = parser.parse_args(argv)
    print_facts()
    measure(options.model, options.precision, options.captions, options.padded, options.rounds)


@torch.inference_mode()
def measure(name: str, precision: str, count: int, padded: int, rounds: int) -> None:
    torch.manual_seed(0)
    theirs = published(architecture_of(name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(theirs.state_dict(), path)
        ours = load(str(path), "cpu", activation="quick_gelu", precision=precision)
    captions = web_captions(max(count, padded))
    batches = [_decoded(captions[i : min(i + BATCH, count)], ours) for i in range(0, count, BATCH)]
    full = [_padded(captions[i : min(i + BATCH, padded)], ours) for i in range(0, padded, BATCH)]
    embedder = Embedder(ours)
    seconds = interleaved(
        rounds,
        windows=lambda: _by_length(embedder, batches, count),
        padded=lambda: [ours.embed_tokens(ids) for ids in full],
        published=lambda: [theirs.encode_text(torch.as_tensor(ids)) for ids in full],
    )
    lengths = np.concatenate([batch.tokens.lengths for batch in batches])
    rates = {
        what: [(count if what == "windows" else padded) / s for s in seconds_of] for what, seconds_of in seconds.items()
    }
    to_padded, to_published = (
        statistics.median(a / b for a, b in zip(rates["windows"], rates[what], strict=True))
        for what in ("padded", "published")
    )
    windows, padded_rate, published_rate = (statistics.median(rates[what]) for what in rates)
    print(f"{count:,} captions per round, tokens: median {np.median(lengths):.0f}, mean {lengths.mean():.1f}")
    print(
        f"{name}: by length, {ours.precision}, {windows:.4g} captions/s; padded to 77, same model {padded_rate:.4g}/s, "
        f"ratio {to_padded:.2f}; published fp32 {published_rate:.4g}/s, ratio {to_published:.2f}",
        flush=True,
    )


def _by_length(embedder: Embedder, batches: Sequence[DecodedBatch], count: int) -> None:
    """Embed captions as in a run; the mark of a unit's end closes the last window.

    Raises:
        RuntimeError: if a caption was not embedded, since the rate would then be wrong.
    """
    *found, _ = embedder.forward([*batches, "end"], Counter())
    if (embedded := sum(len(batch.captions.embeddings) for batch in found)) != count:
        raise RuntimeError(f"{embedded:,} of {count:,} captions were embedded")


def _decoded(captions: Sequence[str], model: ClipModel) -> DecodedBatch:
    """Make a batch of captions without pictures, as the decoders would."""
    n, schema, side = len(captions), samples_schema(), model.image_side
    arrays = [pa.array(captions) if field.name == "caption" else pa.nulls(n, field.type) for field in schema]
    return DecodedBatch(
        unit=0,
        samples=pa.RecordBatch.from_arrays(arrays, schema=schema),
        pixels=np.empty((0, 3, side, side), np.uint8),
        image_rows=[],
        sizes=[],
        sha256=[None] * n,
        tokens=default_tokenizer().tokenize(captions, model.architecture.context_length),
        caption_rows=list(range(n)),
        rejects=[],
    )


def _padded(captions: Sequence[str], model: ClipModel) -> np.ndarray:
    """Tokenize captions to int32 [n, 77]."""
    ids = default_tokenizer().tokenize(captions, model.architecture.context_length).ids
    return np.pad(ids, ((0, 0), (0, model.architecture.context_length - ids.shape[1])))


if __name__ == "__main__":
    main()
