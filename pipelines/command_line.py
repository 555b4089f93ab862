"""Errors in a command line, each in one sentence: the flag, the value, the allowed values and the way out."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

_KINDS = {int: "a whole number", float: "a number", json.loads: "JSON"}
_LONGEST = 80  # the most characters of a value that a message shows
# A flag of ours → the names under which other programs have it.
_SYNONYMS = {
    "--taxonomy": ("labels", "label", "classes", "class", "categories"),
    "--processes": ("workers", "num_workers", "max_num_workers", "num_processes", "jobs", "threads", "num_threads"),
    "--device cuda": ("gpu", "gpus", "cuda"),
    "--batch_size": ("batch", "bs"),
    "--output": ("out", "output_dir", "output_folder"),
}
_NOT_NEEDED = ("resume", "continue", "update")


class UsageError(ValueError):
    """An error in the command line. The message is one sentence."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that rewrites argparse's messages and raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise an error in our words.

        Args:
            message: argparse's message, such as `argument --limit: invalid int value: 'x'`.
        Raises:
            UsageError: always.
        """
        named = re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL)
        actions = {"/".join(action.option_strings): action for action in self._actions}
        if not named or named[1] not in actions:
            raise UsageError(f"{message}; see --help")
        action, said = actions[named[1]], named[2]
        flag = action.option_strings[0]
        if said.startswith("expected"):
            example = f"{flag} {_metavar(action)}"
            raise UsageError(f"{flag} needs a value; write {example}, or {flag}=… if the value begins with a dash")
        if said.startswith("ignored explicit argument"):
            raise UsageError(f"{flag} is a switch and takes no value; write {flag} alone, or omit it")
        found = re.fullmatch(r"invalid (?:choice|[^:]* value): (.*?)(?: \(choose from .*)?", said, re.DOTALL)
        if not found:
            raise UsageError(f"{flag}: {said}; see --help")
        value = found[1] if len(found[1]) <= _LONGEST else f"{found[1][:_LONGEST]}…"
        default = (
            "" if action.default in (None, "", [], {}, argparse.SUPPRESS) else f" for the default, {action.default}"
        )
        cure = "correct it" if _is_required(action) else f"correct it, or omit the flag{default}"
        raise UsageError(f"{flag} is {value}, but it must be {_allowed(action)}; {cure}")


# Headings of `--help`, the same in all commands: what is read, the checkpoint and what goes through it, how the command
# does its work, bounds, and what is written and printed.
GROUPS = ("input", "model", "method", "limits", "output")


class CommandParser(Parser):
    """The parser of a command: `--help` shows how it begins, its flags by GROUPS, and examples that work."""

    def __init__(self, name: str, description: str, examples: Sequence[str], closing: str, **options: Any):
        """Make the groups, and no flag but `--help`.

        Args:
            name: name of the command.
            description: what it does, one or two sentences.
            examples: command lines behind `python -m pipelines.<name>`, which a test runs.
            closing: the last paragraph.
            **options: as for ArgumentParser.
        """
        self.examples = tuple(f"python -m pipelines.{name} {example}".rstrip() for example in examples)
        super().__init__(
            prog=f"python -m pipelines.{name}",
            description=description,
            epilog="\n".join(["examples:", *(f"  {example}" for example in self.examples), "", closing]),
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            **options,
        )
        self._of_title = {title: self.add_argument_group(title) for title in GROUPS}
        self._optionals.title = "help"
        self._action_groups.append(self._action_groups.pop(self._action_groups.index(self._optionals)))

    def to(self, title: str) -> Callable[..., argparse.Action]:
        """Return the `add_argument` of one of GROUPS."""
        return self._of_title[title].add_argument

    def format_help(self) -> str:
        """Show in the usage only the flags that a command needs: all of them would fill the screen."""
        needed = [action for action in self._actions if _is_required(action)]
        shown = [" ".join([*action.option_strings, str(_metavar(action))]) for action in needed]
        self.usage = " ".join(["%(prog)s", *shown, "[flags]"])
        return super().format_help()


class _HelpFormatter(argparse.HelpFormatter):
    """Fills each paragraph for itself, and leaves lines that begin with a space as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(
            line if line.startswith(" ") or not line else super(_HelpFormatter, self)._fill_text(line, width, indent)
            for line in lines
        )


def add_allow_uri(parser: CommandParser, what_for: str = "") -> None:
    """Give a command that reads pictures again the flag `--allow_uri`; `what_for` says which pictures, if not all."""
    parser.to("input")(
        "--allow_uri",
        action="extend",
        nargs="+",
        metavar="URI",
        help="folders or hosts that the URIs of a listing may point to, besides its own folder, as when it was "
        f"embedded{what_for}; https:// stands for every public host",
    )


def add_quiet(parser: CommandParser) -> None:
    """Give a command the flag `--quiet`."""
    parser.to("output")(
        "--quiet",
        action="store_true",
        help="print no progress and no results, only warnings and errors; files and exit codes stay the same",
    )


def _is_required(action: argparse.Action) -> bool:
    """Whether the command refuses to work without a flag. argparse does not know, since its message is not ours."""
    return (action.help or "").startswith("(required)")


def _allowed(action: argparse.Action) -> str:
    if action.choices:
        *others, last = map(str, action.choices)
        return f"{', '.join(others)} or {last}" if others else last
    # The other types are functions of Beam's, and all of them read JSON.
    return _KINDS.get(action.type, "JSON") if action.type else "text"


def _metavar(action: argparse.Action) -> Any:
    return action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())


def meant_instead(flag: str, ours: Collection[str]) -> str:
    """Return advice for a flag that other programs have: `did you mean --taxonomy?`; an empty text if we have none.

    Args:
        flag: the flag as it was written.
        ours: the flags of the command.
    """
    name = _name(flag)
    if name in _NOT_NEEDED:
        return "no flag is needed: the same command goes on and does what is missing"
    meant = [known for known, names in _SYNONYMS.items() if name in names and known.split()[0] in ours]
    return f"did you mean {meant[0]}?" if meant else ""


def nearest(flag: str, known: Iterable[str]) -> str:
    """Return advice for a flag that is perhaps misspelt: the most similar of the known flags, or an empty text."""
    other_programs = {name for names in _SYNONYMS.values() for name in names}
    names = {_name(of): of for of in known}  # the dashes are alike in all flags
    near = [] if _name(flag) in other_programs else difflib.get_close_matches(_name(flag), names, n=1)
    return f"did you mean {names[near[0]]}?" if near else ""


def _name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").lower()
