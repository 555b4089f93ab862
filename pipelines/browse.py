"""A dataset → a page on this machine to search and look in: `python -m pipelines.browse --help`."""

from __future__ import annotations

from pipelines.command import run_light_command

if __name__ == "__main__":  # first: imports take a second, and Ctrl-C then must end in a sentence too
    run_light_command("pipelines.browse")

import argparse
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from typing import Any, NoReturn

from clip_transforms.browsing.plan import BrowsePlan, plan_browse
from clip_transforms.browsing.serving import PORT, Address, serve
from clip_transforms.browsing.session import Session
from clip_transforms.parts.counts import counted
from clip_transforms.select.searched import AGAINST
from pipelines.command import DONE
from pipelines.command_line import CommandParser, UsageError, add_allow_uri, meant_instead, nearest
from pipelines.terminal import complain, on_signals, say

_HOST = "127.0.0.1"


def browse_parser() -> CommandParser:
    """Return the parser of `pipelines.browse`."""
    parser = CommandParser(
        "browse",
        "Open a page on this machine that searches a dataset by words, by a picture that you drop on it, or by a "
        "sample, and shows the pictures. Nothing leaves this machine. Ctrl-C ends it.",
        ["--input out", "--input out --index index --no_open"],
        "Exit codes: 0: ended by Ctrl-C or SIGTERM. 2: the command line or the dataset is wrong; nothing was started.",
    )
    add = parser.to("input")
    add("--input", metavar="URI", help="(required) folder of a dataset that pipelines.embed wrote")
    add("--index", metavar="URI", help="ask this index that pipelines.index wrote: for a million rows and more")
    add(
        "--selection",
        action="extend",
        nargs="+",
        default=[],
        metavar="URI",
        help="rows to show: a folder that filter or deduplicate wrote, or a file, as for the other commands (default: "
        "all rows)",
    )
    add_allow_uri(parser)
    parser.to("model")("--model", help="checkpoint of the dataset, if it was moved since")
    parser.to("method")(
        "--against",
        choices=AGAINST,
        help="what is compared; both: the mean of the two cosines (default: image, or caption if there are no images)",
    )
    add = parser.to("output")
    add(
        "--cache",
        metavar="FOLDER",
        help="folder for what is slow to read from a large dataset (default: clip-transforms in your cache folder)",
    )
    add("--host", default=_HOST, help=f"address to listen on; 0.0.0.0 for all, with a token (default: {_HOST})")
    add("--port", type=int, help=f"port to listen on; 0 for any (default: {PORT}, or any if that is in use)")
    add("--token", action="store_true", help="ask for a token on this machine too, where others use it")
    add("--no_open", dest="open", action="store_false", help="only print the address; open no browser")
    return parser


def main(argv: Sequence[str]) -> int:
    """Serve the page until a signal comes, and return the exit code.

    Raises:
        ValueError: if the command line or the dataset is wrong; nothing was started then.
    """
    options = _parsed(argv)
    if not options.input:
        raise UsageError("--input is missing: give the folder of a dataset that pipelines.embed wrote")
    plan = plan_browse(
        options.input,
        index=options.index,
        against=options.against,
        selection=options.selection,
        allow_uri=options.allow_uri or (),
        model=options.model,
        cache=options.cache,
    )
    address, session = Address(options.host, options.port, options.token), Session(plan)

    def end(number: int = 0, _: Any = None) -> NoReturn:
        """Whatever still works in a thread would make Python wait, or fail while it is taken apart."""
        session.close()
        complain("\nthe page is closed; the dataset is as it was")
        os._exit(DONE)

    on_signals(end)
    serve(session, address, lambda: _started(plan, address, options.open))
    end()


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; advise on a flag that there is not."""
    parser = browse_parser()
    options, unknown = parser.parse_known_args(argv)
    if not unknown:
        return options
    if not unknown[0].startswith("-"):
        raise UsageError(f"{unknown[0]!r} has no flag before it; write --input {unknown[0]} to browse it")
    flag = unknown[0].split("=")[0]
    ours = {name for action in parser._actions for name in action.option_strings}
    hint = meant_instead(flag, ours) or nearest(flag, ours)
    hint += "" if not hint else " " if hint.endswith("?") else "; "
    raise UsageError(f"{flag} is not a flag of this command; {hint}--help lists them")


def _started(plan: BrowsePlan, address: Address, opens: bool) -> None:
    """Print the address, and open it in a browser if there is one."""
    rows = counted(sum(plan.dataset.rows.values()), "row")
    say(f"{plan.dataset.uri}: {rows}{', narrowed by --selection' if plan.selection.places else ''}")
    say(f"{address.url} (Ctrl-C ends it)")
    if not address.is_usual:
        say(f"note: port {PORT} is in use, perhaps by another page of browse, so this one has another port")
    if not address.is_local:
        say("note: whoever has this address with its token can see the pictures; it is not encrypted")
    if opens and _has_a_screen():
        # In a thread, since some browsers are waited for, and the page must answer meanwhile.
        threading.Thread(target=webbrowser.open, args=[address.url], daemon=True).start()


def _has_a_screen() -> bool:
    """Whether a browser would open before the person who gave the command."""
    if not sys.stdout.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
