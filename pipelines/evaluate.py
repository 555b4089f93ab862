"""A dataset → how well its embeddings know what is right: `python -m pipelines.evaluate --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.evaluate")

from collections.abc import Sequence

from clip_transforms.evaluate_embeddings import EvaluateEmbeddings, plan_evaluation
from clip_transforms.evaluation.settings import MEASURES, TEST_FRACTION
from pipelines.command_line import CommandParser
from pipelines.evaluation_lines import evaluation_lines
from pipelines.over_dataset import dataset_parser, run_over_dataset


def evaluate_parser() -> CommandParser:
    """Return the parser of `pipelines.evaluate`. Its flags are arguments of `evaluate_embeddings`."""
    parser = dataset_parser(
        "evaluate",
        "Measure what the embeddings of a dataset know: how often labels are right, for whom, and how often captions "
        "and images find each other.",
        "folder of the evaluation",
        [
            "--input out --output evaluated --truth truth.csv --taxonomy animals",
            "--input out --output found-again --measure retrieval",
        ],
    )
    add = parser.to("input")
    add(
        "--taxonomy",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="taxonomies of the dataset, or files or folders with classes; several are compared over the same rows "
        "(default: the only one of the dataset)",
    )
    add(
        "--truth_column",
        metavar="NAME",
        help="column of the dataset with the right class, as a name or as an index into the first taxonomy (default: "
        "cls, if there is such a column)",
    )
    add(
        "--truth",
        metavar="FILE",
        help=".parquet or .csv file with the column key, or shard and row; and class, or classes for a list",
    )
    add("--group_column", metavar="NAME", help="column whose values are groups: every number is given for each of them")
    add("--split_column", metavar="NAME", help="column of the dataset that says train, val or test, for a probe")
    add(
        "--test",
        action="extend",
        nargs="+",
        metavar="URI",
        help="rows that test a probe, named as for --selection; all others train it",
    )
    parser.to("model")("--model", help="checkpoint of the dataset, if it was moved since and classes must be embedded")
    add = parser.to("method")
    add(
        "--measure",
        action="extend",
        nargs="+",
        choices=list(MEASURES),
        help="zeroshot: the labels of images; retrieval: captions of images, and images of captions; probe: logistic "
        "regression on image embeddings; one or more (default: zeroshot with a truth, groups or a "
        "taxonomy, else retrieval)",
    )
    add(
        "--test_fraction",
        type=float,
        metavar="F",
        help=f"share of the rows that tests a probe, if nothing says which rows do (default: {TEST_FRACTION})",
    )
    add("--seed", type=int, metavar="N", help="seed of the random split for a probe (default: 0)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    return run_over_dataset(evaluate_parser(), argv, plan_evaluation, EvaluateEmbeddings, evaluation_lines)
