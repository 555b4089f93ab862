"""Words, a picture or a sample → the nearest rows of a dataset: `python -m pipelines.search --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.search")

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.search_embeddings import SearchEmbeddings, SearchPlan, plan_search
from clip_transforms.select.results import RESULTS, read_results
from clip_transforms.select.searched import AGAINST, TOP_K
from pipelines.command import DONE, FAILED
from pipelines.command_line import CommandParser, UsageError, add_allow_uri
from pipelines.found_table import found_lines
from pipelines.launch import end_at_signals, failed
from pipelines.options import parse
from pipelines.over_dataset import dataset_parser, required, run_over_dataset
from pipelines.terminal import is_quiet, say

_SHOWN, _SHOWN_ROWS = 5, 20  # queries, and rows of each, that are printed if the results are also in a file
_AGAIN = "nothing was written; give the command again"


def search_parser() -> CommandParser:
    """Return the parser of `pipelines.search`. Its flags are arguments of `search_embeddings`."""
    parser = dataset_parser(
        "search",
        "Find the rows of a dataset that are nearest to words, to a picture, or to a sample of it. Exact.",
        "folder for the results, outside the dataset; without it they are only printed, by this process, without Beam",
        [
            '--input out --text "a photo of a red star" --top_k 3',
            "--input out --image photos/000001.jpg --html found.html",
        ],
    )
    add = parser.to("input")
    add("--text", action="append", metavar="WORDS", help="words to search for, as a caption would say it; repeatable")
    add("--image", action="append", metavar="FILE", help="a picture to search for; repeatable")
    add(
        "--like",
        action="append",
        metavar="KEY",
        help="a sample of the dataset to search for, by its key or as SHARD#ROW; repeatable",
    )
    add(
        "--queries",
        metavar="FILE",
        help="a file with a text a line, or a .parquet or .csv file with a column text or embedding",
    )
    add_allow_uri(parser, ", for the pictures of --html")
    parser.to("model")("--model", help="checkpoint of the dataset, if it was moved since")
    add = parser.to("method")
    add(
        "--against",
        choices=AGAINST,
        help="what is compared; both: the mean of the two cosines, for rows that have both (default: image, or caption "
        "if there are no images)",
    )
    add("--top_k", type=int, metavar="N", help=f"rows to find for each query (default: {TOP_K})")
    add("--where", metavar="SQL", help="search only rows for which this is true, an expression as for pipelines.filter")
    add("--index", metavar="URI", help="ask this index that pipelines.index wrote: fast, and not exact")
    parser.to("output")(
        "--html", metavar="FILE", help="write a page besides, which shows the results with pictures from their sources"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    options, beam_options = parse(search_parser(), argv)
    if "output" in options:
        return run_over_dataset(search_parser(), argv, plan_search, SearchEmbeddings, _lines)
    given = vars(options)
    required(given, "input")
    useless = [name for name in ("overwrite", "dry_run") if name in given]
    for name in [*beam_options.get_all_options(drop_default=True), *useless]:
        raise UsageError(f"--{name} does nothing without --output: the results are only printed; omit it")
    if is_quiet() and not given.get("html"):
        raise UsageError("--quiet leaves nothing of a search without --output or --html: the results are only printed")
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_search(given.pop("input"), storage.join(folder, "found"), **given)
        return _search_here(plan, folder)


def _search_here(plan: SearchPlan, folder: str) -> int:
    """Search in this process, and print everything."""
    search = SearchEmbeddings.of(plan)
    try:
        with end_at_signals(_AGAIN, lambda: storage.remove(folder)):
            content = search.run_here()
    except Exception as error:  # whatever ended the run, its reason becomes one line
        failed(error, _AGAIN)
        return FAILED
    results = read_results(storage.join(plan.output, RESULTS))
    for line in (*found_lines(results, results.num_rows, results.num_rows), *_summary(content)):
        say(line)
    return DONE


def _lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines of a search with an output."""
    uri = storage.join(output, RESULTS)
    lines = [*found_lines(read_results(uri), _SHOWN, _SHOWN_ROWS), *_summary(content)]
    more = content["counts"]["queries"] - _SHOWN
    return [*lines, f"in {uri}" + (f", with those of {more:,} more" if more > 0 else "")]


def _summary(content: Mapping[str, Any]) -> list[str]:
    counts, asked = content["counts"], content["made_by"]
    what = "both embeddings" if asked["against"] == "both" else f"an {asked['against']} embedding"
    what = what.replace("an caption", "a caption")
    without = counts["selected"] - counts["compared"]
    lines = [
        f"{counted(counts['results'], 'result')} for {counted(counts['queries'], 'query', 'queries')}; searched: "
        f"{counted(counts['compared'], 'row')} with {what}" + (f"; {without:,} without" if without else "")
    ]
    if "index" in asked:
        lines.append(f"note: these are what {asked['index']['index']} found; without --index the search is exact")
    if not counts["results"]:
        lines.append("note: nothing was found, since there is no such row")
    elif counts["compared"] < asked["top_k"]:
        lines.append(f"note: --top_k {asked['top_k']:,} is more than there are; every row was found")
    if page := content.get("page"):
        lost = f"; {counted(page['lost'], 'picture')} could not be read again, and it says why" if page["lost"] else ""
        lines.append(f"{page['html']}: open it in a browser{lost}")
    return lines
