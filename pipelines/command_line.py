"""A command line that means nothing, said in one sentence: the flag, the value, what is allowed, and the way out."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any, NoReturn

_KINDS = {int: "a whole number", float: "a number", json.loads: "JSON"}
_LONGEST = 80  # characters of a value that are shown


class UsageError(ValueError):
    """A command line that means nothing, in one sentence."""


class Parser(argparse.ArgumentParser):
    """argparse, but that its sentences read like ours, and raise instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Say what argparse found.

        Args:
            message: of argparse: `argument --limit: invalid int value: 'x'`.
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
            raise UsageError(
                f"{flag} stands without a value; write {example}, or {flag}=… where the value begins with a dash"
            )
        if said.startswith("ignored explicit argument"):
            raise UsageError(f"{flag} is a switch and takes no value; write {flag} alone, or leave it away")
        found = re.fullmatch(r"invalid (?:choice|[^:]* value): (.*?)(?: \(choose from .*)?", said, re.DOTALL)
        if not found:
            raise UsageError(f"{flag}: {said}; see --help")
        value = found[1] if len(found[1]) <= _LONGEST else f"{found[1][:_LONGEST]}…"
        usual = "" if action.default in (None, "", [], {}) else f" for the usual {action.default}"
        raise UsageError(f"{flag} is {value}, but it must be {_allowed(action)}; leave the flag away{usual}")


def _allowed(action: argparse.Action) -> str:
    if action.choices:
        *others, last = map(str, action.choices)
        return f"{', '.join(others)} or {last}" if others else last
    # Beam has flags with functions of its own, which all read JSON.
    return _KINDS.get(action.type, "JSON") if action.type else "a text"


def _metavar(action: argparse.Action) -> Any:
    return action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
