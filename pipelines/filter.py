"""A dataset → a selection by SQL, exact top fraction or sample: `python -m pipelines.filter --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.filter")

from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.filter_embeddings import FilterEmbeddings, plan_filter
from pipelines.command_line import CommandParser
from pipelines.over_dataset import dataset_parser, run_over_dataset, selection_lines


def filter_parser() -> CommandParser:
    """Return the parser of `pipelines.filter`. Its flags are arguments of `filter_embeddings`."""
    parser = dataset_parser(
        "filter",
        "Keep some rows of a dataset, as a selection for the other commands. The conditions apply in the order below.",
        "(required) folder of the selection, outside the dataset",
        [
            '--input out --output kept --where "clip_score >= 0.2 and animals.probability > 0.5"',
            "--input out --output best --top_fraction 0.3",
        ],
    )
    add = parser.to("method")
    add(
        "--where",
        metavar="SQL",
        help="a DuckDB expression over a row's columns and, for each taxonomy, a struct of its name: "
        "\"clip_score >= 0.28 and animals.label = 'cat'\"; rows stay where it is true, which null is not",
    )
    add("--sample_fraction", type=float, metavar="F", help="keep a seeded sample of the rows, 0 to 1")
    add("--seed", type=int, metavar="N", help="another seed gives another sample (default: 0)")
    add(
        "--top_fraction",
        type=float,
        metavar="F",
        help="keep the best part of the rows, 0 to 1, exactly as DataComp does: those at least as good as the row at "
        "place int(rows * F)",
    )
    add("--top_count", type=int, metavar="N", help="keep the best N rows; the first ones of equal rows")
    add("--by", metavar="SQL", help="a DuckDB expression that says how good a row is (default: clip_score)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    return run_over_dataset(filter_parser(), argv, plan_filter, FilterEmbeddings, _lines)


def _lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines."""
    lines, cut, asked = selection_lines(output, content), content.get("cut"), content["made_by"]
    if cut is None:
        return lines
    by = asked["by"]
    if cut["threshold"] is not None:
        counts = f"{cut['above']:,} above and {cut['ties']:,} equal, of {cut['n']:,}"
        threshold = cut["threshold"] if isinstance(cut["threshold"], int) else f"{float(cut['threshold']):.9g}"
        lines.append(f"{by} >= {threshold} stays: {counts}")
    elif "top_count" in asked and cut["values"] < asked["top_count"]:
        lines.append(f"note: --top_count {asked['top_count']:,} is more than there are; every row with a value stays")
    elif "top_fraction" in asked and cut["n"]:
        lines.append(
            f"note: --top_fraction {asked['top_fraction']} reaches into the {cut['n'] - cut['values']:,} rows without "
            f"a value of {by}; every row with a value stays"
        )
    return lines
