"""The arguments of a verb, which its plain function spells out once for its transform too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

_P = ParamSpec("_P")


def same_arguments(
    function: Callable[_P, Any],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Let the `__init__` of a transform take the arguments of its plain function, which so stand once.

    Args:
        function: the plain function. The `__init__` gets all of its arguments by name, with their defaults.
    """
    signature = inspect.signature(function)

    def decorate(initialise: Callable[..., None]) -> Callable[Concatenate[Any, _P], None]:
        @functools.wraps(initialise)
        def initialised(self: Any, *args: _P.args, **kwargs: _P.kwargs) -> None:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{initialise.__qualname__}() {error}") from None
            bound.apply_defaults()
            initialise(self, **bound.arguments)

        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        initialised.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[itself, *signature.parameters.values()], return_annotation=None
        )
        return initialised

    return decorate
