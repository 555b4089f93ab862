"""A dataset → an index for many searches: `python -m pipelines.index --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.index")

from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.index_embeddings import IndexEmbeddings, plan_index
from clip_transforms.parts.counts import counted
from clip_transforms.select.vector_index import AUTO, KINDS
from pipelines.command_line import CommandParser
from pipelines.over_dataset import dataset_parser, run_over_dataset
from schemas.samples import MODALITIES

_GOOD = 0.95


def index_parser() -> CommandParser:
    """Return the parser of `pipelines.index`. Its flags are arguments of `index_embeddings`."""
    parser = dataset_parser(
        "index",
        "Make an index of a dataset, with which pipelines.search --index looks at some of the rows instead of all.",
        "(required) folder of the index, outside the dataset",
        [
            "--input out --output index",
            "--input out --output index-captions --against caption --kind flat",
        ],
    )
    add = parser.to("method")
    add(
        "--kind",
        choices=KINDS,
        help="flat: compare all rows, as float16; ivf: compare some lists of them; hnsw: follow a graph, which takes "
        f"longest to make (default: {AUTO}: flat up to 50,000 rows, ivf above)",
    )
    add(
        "--against",
        choices=MODALITIES,
        help="whose embeddings it holds (default: image, or caption if there are no images)",
    )
    add("--seed", type=int, metavar="N", help="seed of the lists, and of the rows that measure the recall (default: 0)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    return run_over_dataset(index_parser(), argv, plan_index, IndexEmbeddings, _lines)


def _lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines."""
    found, asked = content["recall_at_10"], content["queries"]
    of = content["made_by"]["against"]
    lines = [f"{counted(content['rows'], f'{of} embedding')} in {output} ({content['kind']})"]
    for name, recall in found.items():
        lines.append(f"recall@10 with {counted(asked[name], f'{name} embedding')} as queries: {recall:.4f}")
    if not content["rows"]:
        lines.append(f"note: the index is empty, since no selected row has {'an' if of == 'image' else 'a'} {of}")
    if found and min(found.values()) < _GOOD:
        lines.append(
            "note: the index misses many of the nearest rows, as it must where rows lie in all directions alike; "
            "search without --index, or give --kind flat"
        )
    return lines
