"""What a file or folder is, and what to do with it: `python -m pipelines.inspect PATH`."""

from __future__ import annotations

from pipelines.command import run_light_command

if __name__ == "__main__":  # first, as in the other commands
    run_light_command("pipelines.inspect")

from collections.abc import Iterator, Sequence

from clip_transforms.run.inspect_path import inspect_path
from clip_transforms.run.inspected import Inspected
from pipelines.command import DONE
from pipelines.command_line import CommandParser, UsageError, add_quiet
from pipelines.terminal import be_quiet, printable, say


def inspect_parser() -> CommandParser:
    """Return the parser of `pipelines.inspect`."""
    parser = CommandParser(
        "inspect",
        "Say what a file or folder is, and what to do with it: shards, a dataset or a part of it, what a command made "
        "of one, a checkpoint. Nothing is written, and no code from a file is run.",
        ["out", "photos"],
        "Exit codes: 0: it is something that a command reads or wrote. 2: there is nothing, it is damaged, or no "
        "command reads it; one sentence says so.",
    )
    parser.to("input")("path", metavar="PATH", nargs="?", help="(required) a file or folder, or any URI of one")
    add_quiet(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line is wrong, there is nothing, or no command reads it.
    """
    options = inspect_parser().parse_args(argv)
    be_quiet(options.quiet)
    if not options.path:
        raise UsageError("PATH is missing: give a file or folder")
    for line in inspection_lines(options.path, inspect_path(options.path)):
        say(line)
    return DONE


def inspection_lines(path: str, found: Inspected) -> Iterator[str]:
    """Yield the lines that describe a path."""
    yield printable(f"{path}: {found.what}")
    width = max((len(name) for name, _ in found.facts), default=0)
    for name, value in found.facts:
        yield printable(f"  {name:{width}}  {value}")
    for place, line in enumerate(found.further):
        yield printable(f"{'next:' if not place else '  or:'} {line}")
