"""A dataset → a selection without duplicates: `python -m pipelines.deduplicate --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.deduplicate")

from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.deduplicate_embeddings import DeduplicateEmbeddings, plan_duplicates
from clip_transforms.parts.counts import counted
from clip_transforms.select.duplicates import MODALITIES_OF, RECALL, THRESHOLD
from clip_transforms.select.keepers import KEEP
from clip_transforms.select.near import RULES
from pipelines.command_line import CommandParser
from pipelines.over_dataset import dataset_parser, run_over_dataset, selection_lines


def deduplicate_parser() -> CommandParser:
    """Return the parser of `pipelines.deduplicate`. Its flags are arguments of `deduplicate_embeddings`."""
    parser = dataset_parser(
        "deduplicate",
        "Keep one row of each group of duplicates, as a selection for the other commands; groups/*.parquet names all.",
        "(required) folder of the selection, outside the dataset",
        [
            "--input out --output unique",
            "--input out --output unlike --selection best --by image --threshold 0.95",
        ],
    )
    add = parser.to("method")
    add(
        "--by",
        choices=list(MODALITIES_OF),
        help="what makes rows duplicates: equal image files (exact), images, captions or both (pair) that are near "
        "each other (default: exact)",
    )
    add("--threshold", type=float, metavar="C", help=f"smallest cosine of near duplicates (default: {THRESHOLD})")
    add(
        "--keep",
        choices=list(KEEP),
        help="who stays: the largest clip_score, then the most pixels (score); the most pixels, then the score "
        "(pixels); or the first, which decides between equals too (default: score)",
    )
    add(
        "--rule",
        choices=list(RULES),
        help="components: one row stays of rows that are near each other, over any number of rows between; semdedup: "
        f"as SemDeDup does within a block (default: {RULES[0]})",
    )
    add(
        "--recall",
        type=float,
        metavar="R",
        help=f"share of the pairs at the threshold that shall be found; more takes longer (default: {RECALL})",
    )
    add("--seed", type=int, metavar="N", help="seed of the blocks in which rows are compared (default: 0)")
    add(
        "--measure_recall",
        type=int,
        metavar="N",
        help="compare N rows with all others, and print how many of their near duplicates share their group",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    return run_over_dataset(deduplicate_parser(), argv, plan_duplicates, DeduplicateEmbeddings, _lines)


def _lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines."""
    found, asked = content["duplicates"], content["made_by"]
    groups = f"{counted(found['groups'], 'group')} of {counted(found['grouped'], 'row')}"
    lines = [*selection_lines(output, content), f"{groups} in {output}/groups"]
    lacking = "image_sha256" if asked["by"] == "exact" else "embedding"
    if found["not_compared"]:
        lines.append(f"note: {counted(found['not_compared'], 'row')} without {lacking} stayed and were not compared")
    if "recall" in found and found["recall"] < asked["recall"]:
        lines.append(
            f"note: {100 * found['recall']:.2f} % of the pairs at the threshold are expected to be found; --recall "
            f"{asked['recall']} would put every row into too many blocks"
        )
    if "measured" in found:
        lines.append(_measured(asked["measure_recall"], found))
    return lines


def _measured(rows: int, found: Mapping[str, Any]) -> str:
    """Return the line about the measured recall."""
    pairs, right = found["measured"]["pairs"], found["measured"]["found"]
    asked = counted(min(rows, found["compared"]), "row")
    if not pairs:
        return f"recall: {asked} compared with all others have no near duplicate"
    return f"recall: {right:,} of {counted(pairs, 'pair')} share a group ({100 * right / pairs:.2f} %), of {asked}"
