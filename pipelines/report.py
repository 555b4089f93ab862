"""A dataset → one page that shows what is in it: `python -m pipelines.report --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.report")

from collections.abc import Sequence

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.report_embeddings import PAGE, ReportEmbeddings, ReportPlan, lost_pictures, plan_report
from clip_transforms.run.beam import beam
from clip_transforms.workers.runner import in_process
from pipelines.command import DONE, FAILED
from pipelines.command_line import CommandParser, UsageError, add_allow_uri
from pipelines.launch import launch, make_pipeline
from pipelines.options import parse
from pipelines.over_dataset import dataset_parser, over_line
from pipelines.progress import steps_bar
from pipelines.terminal import say


def report_parser() -> CommandParser:
    """Return the parser of `pipelines.report`. Its flags are arguments of `report_embeddings`."""
    parser = dataset_parser(
        "report",
        "Write a page that shows what is in a dataset: pictures, scores, labels, rejects, a map, and where the time "
        "went. It is one HTML file that loads nothing.",
        "the page, an HTML file",
        [
            "--input out",
            "--input out --output chosen.html --selection best --duplicates unique",
        ],
    )
    for action in parser._actions:
        if action.dest == "output":
            action.help = f"the page, an HTML file outside the dataset (default: {PAGE})"
        if action.dest == "overwrite":
            action.help = "replace a file that is no report"
    add = parser.to("input")
    add(
        "--duplicates",
        metavar="URI",
        help="folder that deduplicate wrote, whose groups the page shows (default: that of --selection, if it is one)",
    )
    add_allow_uri(parser)
    parser.to("output")(
        "--no_pictures",
        dest="pictures",
        action="store_false",
        help="read no picture: the page is small, and the sources need not be there",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    options, beam_options = parse(report_parser(), argv)
    given = vars(options)
    if not given.get("input"):
        raise UsageError("--input is missing: give the folder of a dataset that pipelines.embed wrote")
    pipeline = make_pipeline(beam_options)
    dry = given.pop("dry_run", False)
    plan = plan_report(given.pop("input"), **given)
    if dry:
        say(over_line("report", plan.dataset))
        say(f"output {plan.page}; nothing was written (--dry_run)")
        return DONE
    return write_page(plan, pipeline)


def write_page(plan: ReportPlan, pipeline: beam.Pipeline) -> int:
    """Write a page, say where it is, and return the exit code."""
    with steps_bar("report", [], in_process(pipeline.options)):
        succeeded = launch(pipeline, ReportEmbeddings.of(plan))
    if not succeeded:
        return FAILED
    for line in closing_lines(plan):
        say(line)
    return DONE


def closing_lines(plan: ReportPlan) -> list[str]:
    """Return the lines that say where the page is, and what it lacks."""
    if not storage.exists(plan.page):  # a job elsewhere goes on
        return [f"the job goes on without this command; {plan.page} appears at its end"]
    (info,) = storage.infos_of([plan.page])
    lines = [f"{plan.page}: {info.size / 1000:,.0f} kB; open it in a browser"]
    if lost := lost_pictures(plan.page):
        lines.append(f"note: {counted(lost, 'picture')} could not be read again; the page says which, and why")
    return lines
