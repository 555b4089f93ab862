"""What the commands over a finished dataset have in common: flags, and how they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.parts.dataset import Dataset
from clip_transforms.run.new_output import NewOutput
from clip_transforms.run.over_parts import OverParts, Plan
from clip_transforms.workers.runner import in_process
from pipelines.command import DONE, FAILED
from pipelines.command_line import CommandParser, UsageError, add_quiet
from pipelines.launch import launch, make_pipeline
from pipelines.options import parse
from pipelines.progress import steps_bar
from pipelines.terminal import say

_EXIT_CODES = (
    "Exit codes: 0: done, also if nothing is left of the rows. 1: the run failed. 2: the command line, the dataset or "
    "the existing output is wrong; nothing was started. Beam's own flags may follow; the default of --runner is "
    "FnApiRunner, which works in this process."
)
_ORDER = ("selection", "where", "sample", "top")  # in which the conditions of a filter apply


class NewPlan(Plan, Protocol):
    """A plan of a command that reads a dataset and writes a folder of its own."""

    @property
    def dataset(self) -> Dataset:
        """The dataset."""

    @property
    def new(self) -> NewOutput:
        """The folder."""


def dataset_parser(name: str, description: str, output: str, examples: Sequence[str]) -> CommandParser:
    """Return a parser with the flags that all these commands have.

    Args:
        name: name of the command.
        description: what it does, one sentence.
        output: help of `--output`.
        examples: command lines that work, without the name of the command.
    """
    parser = CommandParser(name, description, examples, _EXIT_CODES, argument_default=argparse.SUPPRESS)
    add = parser.to("input")
    add("--input", metavar="URI", help="(required) folder of a dataset that pipelines.embed wrote")
    add(
        "--selection",
        action="extend",
        nargs="+",
        metavar="URI",
        help="rows to look at: a folder that filter or deduplicate wrote, a .parquet or .csv file with the columns "
        "shard and row, or a .txt file with a key a line; of several, the rows that all name (default: all rows)",
    )
    add = parser.to("output")
    add("--output", metavar="URI", help=output)
    add("--overwrite", action="store_true", help="replace what another command made in --output")
    add("--dry_run", action="store_true", help="print what would be done, then stop; nothing is written")
    add_quiet(parser)
    return parser


def required(options: Mapping[str, Any], *names: str) -> None:
    """Refuse a command line that lacks `--input` or `--output`.

    Raises:
        UsageError: naming the first that is missing.
    """
    what = {"input": "the folder of a dataset that pipelines.embed wrote", "output": "a new folder"}
    for name in names:
        if not options.get(name):
            raise UsageError(f"--{name} is missing: give {what[name]}")


def run_over_dataset(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    make_plan: Callable[..., NewPlan],
    transform: type[OverParts],
    lines: Callable[[str, Mapping[str, Any]], Sequence[str]],
) -> int:
    """Run a command over a dataset and return its exit code.

    Args:
        parser: parser of the command; its flags have no defaults, and those given become arguments of `make_plan`.
        argv: the command line.
        make_plan: checks the arguments; the first two are the dataset and the output.
        transform: the transform that carries the plan out.
        lines: (output, content of the record) → the lines that are printed at the end.
    Raises:
        ValueError: if the command line, the dataset or the output is wrong; nothing was started or written then.
    """
    options, beam_options = parse(parser, argv)
    given = vars(options)
    required(given, "input", "output")
    pipeline = make_pipeline(beam_options)
    dry = given.pop("dry_run", False)
    plan = make_plan(given.pop("input"), given.pop("output"), **given)
    content = plan.finished()
    if dry:
        for line in plan_lines(plan, content is not None):
            say(line)
        return DONE
    before = content is not None
    if content is None:
        folders = [storage.join(plan.output, name) for name in plan.new.folders]
        with steps_bar(plan.new.command["verb"], folders, in_process(beam_options)):
            succeeded = launch(pipeline, transform.of(plan))
        if not succeeded:
            return FAILED
        content = plan.new.finished()
        if content is None:
            say(f"the job goes on without this command; {plan.output}/_SUCCESS appears at its end")
            return DONE
    for line in lines(plan.output, content):
        say(line)
    if plan.new.replaces and not before:
        say(f"--overwrite replaced what another command had made: {plan.new.replaces}")
    if before:
        say("nothing was left to do")
    return DONE


def plan_lines(plan: NewPlan, done: bool) -> Iterator[str]:
    """Yield the lines of `--dry_run`.

    Args:
        plan: what would be done.
        done: whether all of it was done before.
    """
    new = plan.new
    yield over_line(new.command["verb"], plan.dataset)
    yield from (f"  {name:17} {value}" for name, value in new.settings.items())
    if new.replaces:
        yield f"--overwrite: what another command made would be replaced: {new.replaces}"
    elif done:
        yield "nothing is left to do"
    elif new.has_begun():
        yield "an earlier run has begun this, and the command would go on from there"
    writes = ", ".join(new.command["writes"])
    yield f"output {new.uri} ({writes}); nothing was written (--dry_run)"


def over_line(verb: str, dataset: Dataset) -> str:
    """Return the first line of `--dry_run`."""
    rows = counted(sum(dataset.rows.values()), "row")
    return f"{verb} over {counted(len(dataset.parts), 'part')} of {dataset.uri}, {rows}"


def selection_lines(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the closing lines of a command that wrote a selection."""
    counts = content["counts"]
    kept = [f"{counts['kept']:,} kept"]
    dropped = sorted(counts["dropped"].items(), key=lambda item: (*_ORDER, item[0]).index(item[0]))
    kept += [f"{number:,} dropped by {reason}" for reason, number in dropped if number]
    kept += [f"{counts['null']:,} null"] if counts["null"] else []
    line = f"{counted(counts['seen'], 'row')} = {' + '.join(kept)}, in {output}"
    return [line, *([] if counts["kept"] else ["note: the selection is empty"])]
