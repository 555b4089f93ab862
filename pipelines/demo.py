"""Show a complete run on drawn scenes: `python -m pipelines.demo`, or `make demo`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.demo")

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import duckdb

from clip_transforms.demo.shards import write_demo_inputs
from pipelines import deduplicate, embed, evaluate, report
from pipelines import filter as filter_command
from pipelines.command import DONE
from pipelines.command_line import CommandParser, UsageError, add_quiet
from pipelines.terminal import be_quiet, say

_ROWS = """SELECT e.key, e.caption, round(e.clip_score, 3) AS clip_score, s.label AS shape, c.label AS color
FROM '{out}/embeddings/*.parquet' e
JOIN '{out}/labels/shapes/*.parquet' s USING (shard, row)
JOIN '{out}/labels/colors/*.parquet' c USING (shard, row)
WHERE e.caption IS NOT NULL ORDER BY e.shard, e.row LIMIT 5"""
_AGREEMENT = """SELECT count(*), count(*) FILTER (s.label = e.drawn_shape), count(*) FILTER (c.label = e.drawn_color)
FROM '{out}/embeddings/*.parquet' e
JOIN '{out}/labels/shapes/*.parquet' s USING (shard, row)
JOIN '{out}/labels/colors/*.parquet' c USING (shard, row)
WHERE e.image_embedding IS NOT NULL"""
_QUERY = """SELECT l.label, count(*) AS pictures, round(avg(e.clip_score), 3) AS mean_score
FROM '{out}/embeddings/*.parquet' e JOIN '{out}/labels/shapes/*.parquet' l USING (shard, row)
WHERE l.probability > 0.9 GROUP BY l.label ORDER BY pictures DESC"""

_DRAWN = ["--taxonomy", "shapes", "--truth_column", "drawn_shape"]
# What is said first, the command, and its arguments.
_STEPS = (
    (
        "Ask what the model gets right, with the shapes that were drawn as truth:",
        evaluate,
        ["--output", "demo/evaluated", "--measure", "zeroshot", "retrieval", "probe", *_DRAWN],
    ),
    (
        "Does it see shapes equally well on every background?",
        evaluate,
        ["--output", "demo/by-background", *_DRAWN, "--group_column", "drawn_background"],
    ),
    (
        "Choose the scenes whose labels are sure and whose captions fit best, then drop those that look alike:",
        filter_command,
        [
            *("--output", "demo/kept", "--top_fraction", "0.5"),
            *("--where", "shapes.probability > 0.9 and colors.probability > 0.9"),
        ],
    ),
    (
        "",
        deduplicate,
        ["--output", "demo/unique", "--selection", "demo/kept", "--by", "image", "--threshold", "0.99"],
    ),
    ("See everything on one page:", report, ["--output", "demo/report.html", "--duplicates", "demo/unique"]),
)


def demo_parser() -> CommandParser:
    """Return the parser of `pipelines.demo`."""
    parser = CommandParser(
        "demo",
        "Show a complete run: draw 2,000 captioned scenes into ./demo, embed, label, measure and choose them, and "
        "write a page about them. Nothing is downloaded.",
        [""],
        "Exit codes: those of the commands that it runs.",
    )
    add_quiet(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Draw the scenes that are missing, run the real command on them, and show the result.

    Raises:
        UsageError: if there are other arguments.
    """
    options, more = demo_parser().parse_known_args(argv)
    if more:
        raise UsageError(f"{more[0]!r} is an argument, but the demo takes none; omit it (the demo works in ./demo)")
    be_quiet(options.quiet)
    quiet = ["--quiet"] if options.quiet else []
    folder, out = Path("demo"), "demo/out"
    if written := write_demo_inputs(folder):
        say(f"drew {sum(path.suffix == '.tar' for path in written)} shards of captioned scenes into {folder}/")
    command = ["--input", "demo/scenes-*.tar", "--output", out, "--model", "demo"]
    command += ["--taxonomy", "demo/shapes.json", "--taxonomy", "demo/colors.json"]
    command += ["--columns", "drawn_shape=shape", "drawn_color=color", "drawn_background=background"]
    say(f"\n$ python -m pipelines.embed {shlex.join(command)}")
    code = embed.main([*command, *quiet])
    if code != DONE:
        return code
    say("\nFive rows of what was written:")
    say(str(duckdb.sql(_ROWS.format(out=out))))
    total, shapes, colors = duckdb.execute(_AGREEMENT.format(out=out)).fetchall()[0]
    say(f"labels that agree with what was drawn: shapes {shapes:,} of {total:,}, colors {colors:,} of {total:,}")
    say(f"\nAn analyst's question, in DuckDB:\n{_QUERY.format(out=out)}")
    say(str(duckdb.sql(_QUERY.format(out=out))))
    for before, command_, more in _STEPS:
        arguments = ["--input", out, *more]
        if before:
            say(f"\n{before}")
        say(f"\n$ python -m {command_.__name__} {shlex.join(arguments)}")
        code = command_.main([*arguments, *quiet])
        if code != DONE:
            return code
    say("")
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    say("Next, try your own images: a folder (with captions in .txt files beside them), .tar or .parquet files.")
    say("Write the words to label them with into my_words.txt, one per line, then run:\n")
    say(f"  {python} -m pipelines.embed --input ~/Pictures --output out --model ViT-B/32 --taxonomy my_words.txt")
    say("\nTo search in what the demo has made, on a page in your browser:\n")
    say(f"  {python} -m pipelines.browse --input demo/out")
    return DONE
