"""Compare our forward pass with the published module: `python -m benchmarks.forward --model ViT-B/32`.

Both use the same weights. For each model, the benchmark prints the images/s and captions/s of both, their ratio, and
our fraction of the machine's matrix rate, measured in the same rounds. It counts FLOP in two ways: those of the
published pass, and those that our pass really needs. The published module runs in fp32 and pads captions to 77 tokens.
Ours gets the same captions here; `benchmarks.captions` uses realistic lengths.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import interleaved, matrix_rate, median_ratio, print_facts
from benchmarks.published import published
from clip_transforms.clip.architectures import PUBLISHED
from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import PRECISIONS

_FLOP_PER_PASS = 280e9  # a batch of 32 for the small models, and smaller batches for the large ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=list(PUBLISHED), help="published names; by default all nine")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="precision of our model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds (%(default)s)")
    options = parser.parse_args()
    print_facts()
    for name in options.model:
        measure(name, options.precision, options.rounds)


@torch.inference_mode()
def measure(name: str, precision: str, rounds: int) -> None:
    architecture = PUBLISHED[name].architecture
    torch.manual_seed(0)
    theirs = published(architecture)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(theirs.state_dict(), path)
        ours = load(str(path), "cpu", activation="quick_gelu", precision=precision)
    side, length = architecture.image_side, architecture.context_length
    one = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    tokens = torch.zeros(1, length, dtype=torch.int32)
    for what, their_pass, our_pass, their_one, our_one, make in (
        (
            "images",
            lambda pixels: theirs.encode_image(pixels.float() / 127.5 - 1),
            ours.embed_images,
            one,
            one,
            lambda n: torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8),
        ),
        (
            "captions",
            lambda ids: theirs.encode_text(ids),
            ours.embed_tokens,
            tokens,
            tokens,
            lambda n: torch.randint(1, 49406, (n, length), dtype=torch.int32),
        ),
    ):
        their_flop, our_flop = flop(their_pass, their_one), flop(our_pass, our_one)
        n = max(1, min(32, round(_FLOP_PER_PASS / their_flop)))
        batch = make(n)
        rates: list[float] = []
        seconds = interleaved(
            rounds,
            theirs=lambda batch=batch, run=their_pass: run(batch),
            ours=lambda batch=batch, run=our_pass: run(batch),
            product=lambda rates=rates: rates.append(matrix_rate(ours.visual.conv1.weight.dtype)),
        )
        rate = [n / s for s in seconds["ours"]]
        products = rates[1:]  # the first belongs to the warm-up
        of_published, of_ours = (
            statistics.median(r * f / p for r, p in zip(rate, products, strict=True)) for f in (their_flop, our_flop)
        )
        their_rate, our_rate = n / statistics.median(seconds["theirs"]), statistics.median(rate)
        print(
            f"{name}, {n} {what} at a time: published fp32 {their_rate:.3g}/s, ours {ours.precision} {our_rate:.3g}/s, "
            f"ratio {median_ratio(seconds['theirs'], seconds['ours']):.2f}; of the matrix rate "
            f"({statistics.median(products) / 1e9:,.1f} GFLOP/s) {of_published:.2f} by the published "
            f"{their_flop / 1e9:.1f} GFLOP, {of_ours:.2f} by our {our_flop / 1e9:.1f}",
            flush=True,
        )


def flop(run, batch: torch.Tensor) -> int:
    """Return the FLOP of one pass."""
    with FlopCounterMode(display=False) as counter:
        run(batch)
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
