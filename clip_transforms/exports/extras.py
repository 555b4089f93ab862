"""Packages that only some layouts need."""

from __future__ import annotations

import importlib
from types import ModuleType

# Layout → (package, extra).
EXTRAS = {"faiss": ("faiss", "search"), "lance": ("lance", "lance")}


def import_extra(layout: str) -> ModuleType:
    """Import the package that a layout needs.

    Raises:
        ValueError: if it is not installed.
    """
    package, extra = EXTRAS[layout]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"--as {layout} needs a package that is not installed: pip install 'clip-transforms[{extra}]'"
        ) from None
