"""A dataset → training shards again, or a layout of another tool: `python -m pipelines.export --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.export")

from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.export_embeddings import ExportEmbeddings, ExportPlan, plan_export
from clip_transforms.exports.left_out import NAME as LEFT_OUT
from clip_transforms.exports.plan import LAYOUTS, MODALITY, SAMPLES_PER_SHARD
from clip_transforms.parts.counts import counted
from pipelines.command_line import CommandParser, UsageError, add_allow_uri
from pipelines.over_dataset import dataset_parser, run_over_dataset

_FILES = {"webdataset": "tar", "faiss": "index", "lance": "table"}


def export_parser() -> CommandParser:
    """Return the parser of `pipelines.export`. Its flags are arguments of `export_embeddings`."""
    parser = dataset_parser(
        "export",
        "Write rows of a dataset as training shards again, or in a layout that another tool reads.",
        "(required) folder of the export, outside the dataset",
        [
            "--input out --output chosen --selection best --as webdataset",
            "--input out --output vectors --as npy --modality image",
        ],
    )
    add_allow_uri(parser, ", for --as webdataset")
    add = parser.to("output")
    add(
        "--as",
        dest="layout",
        choices=tuple(LAYOUTS),
        help="(required) webdataset: tars with the original pictures, captions, and JSON of key, score, labels and "
        "more; clip_retrieval: img_emb, text_emb and metadata; npy: a matrix and its rows; datacomp_uids: uids.npy for "
        "DataComp's resharder; faiss: an exact index and its rows; lance: a Lance dataset",
    )
    add(
        "--samples_per_shard",
        type=int,
        metavar="N",
        help=f"the most samples of a tar of webdataset (default: {SAMPLES_PER_SHARD:,})",
    )
    add(
        "--modality",
        choices=MODALITY,
        help="whose embeddings clip_retrieval, npy and faiss write; rows without them are left out (default: those "
        "that there are, and for faiss the images')",
    )
    add(
        "--labels",
        action="extend",
        nargs="*",
        metavar="NAME",
        help="taxonomies whose labels webdataset, clip_retrieval and lance take along; without a name, none (default: "
        "all)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    return run_over_dataset(export_parser(), argv, _plan, ExportEmbeddings, _lines)


def _plan(dataset: str, output: str, layout: str = "", **options: Any) -> ExportPlan:
    if not layout:
        raise UsageError(f"--as is missing: give one of {', '.join(LAYOUTS)}")
    return plan_export(dataset, output, layout, **options)


def _lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines."""
    counts, layout = content["counts"], content["made_by"]["as"]
    fates = [f"{counts['exported']:,} exported", *(f"{n:,} {reason}" for reason, n in counts["left_out"].items())]
    files = counted(counts["files"], _FILES.get(layout, "file"), "indexes" if layout == "faiss" else "")
    lines = [f"{counted(counts['selected'], 'row')} = {' + '.join(fates)}, in {output} ({files})"]
    if not counts["exported"]:
        lines.append("note: the export is empty")
    if LEFT_OUT in content["entries"]:
        lines.append(f"the rows that were left out are named in {output}/{LEFT_OUT}")
    if counts["left_out"].get("not allowed"):
        lines.append("note: --allow_uri permits pictures outside of a listing's folder, as when they were embedded")
    return lines
