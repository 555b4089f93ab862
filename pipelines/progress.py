"""A progress bar, fed by a thread. It shows nothing with --quiet, or if stderr is not a terminal."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from clip_transforms import storage
from clip_transforms.parts.footers import part_names
from clip_transforms.run.embed_units import PROGRESS
from clip_transforms.run.over_parts import PROGRESS as STEPS
from clip_transforms.run.plan import RunPlan
from clip_transforms.workers.watching import watching
from pipelines.terminal import is_quiet

_SECONDS = 0.5
_LISTING_SECONDS = 5.0


@contextlib.contextmanager
def progress_bar(plan: RunPlan, in_process: bool) -> Iterator[None]:
    """Show the progress of a run while the block runs.

    Args:
        plan: plan of the run.
        in_process: whether this process embeds and so knows about every sample; otherwise the bar counts committed
            parts.
    """
    style = _style("embedding")
    total = sum(unit.num_bytes for unit in plan.pending)
    if in_process:
        bar = tqdm(total=total, unit="B", unit_scale=True, **style)
    else:
        bar = tqdm(total=len(plan.units), initial=len(plan.units) - len(plan.pending), unit="unit", **style)
    base = dict(PROGRESS)

    def show() -> None:
        if in_process:
            now = {key: PROGRESS[key] - base.get(key, 0) for key in ("samples", "bytes", "units")}
            bar.n = min(now["bytes"], total)
            rate = now["samples"] / max(1e-9, bar.format_dict["elapsed"])
            bar.set_postfix_str(f"{now['samples']:,} samples, {rate:,.0f}/s, {now['units']} units")
        else:
            wanted = {planned.unit.part for planned in plan.units}
            bar.n = len(wanted & part_names(plan.settings.output, "embeddings"))
            bar.refresh()

    with _watched(bar, show, _SECONDS if in_process else _LISTING_SECONDS):
        yield
        if in_process:
            bar.n = total
            bar.set_postfix_str(f"{PROGRESS['samples'] - base.get('samples', 0):,} samples")


@contextlib.contextmanager
def steps_bar(verb: str, folders: Sequence[str], in_process: bool) -> Iterator[None]:
    """Show the progress of a run over a dataset while the block runs.

    Args:
        verb: what is run.
        folders: URIs of the folders that it fills.
        in_process: whether this process does the steps; otherwise the bar counts files in the folders.
    """
    bar = tqdm(total=None, unit="task" if in_process else "file", **_style(verb))
    STEPS.clear()

    def show() -> None:
        if in_process and STEPS["items"]:
            bar.set_description_str(f"{verb}, step {STEPS['step']} of {STEPS['steps']}", refresh=False)
            bar.total, bar.n = STEPS["items"], STEPS["done"]
        elif not in_process:
            bar.n = sum(len(storage.names_in(folder)) for folder in folders)
        bar.refresh()

    with _watched(bar, show, _SECONDS if in_process else _LISTING_SECONDS):
        yield
        if not bar.disable:
            show()


def _style(description: str) -> dict[str, Any]:
    # A terminal that does not report its width gets a bar of 80 columns.
    width = None if shutil.get_terminal_size((0, 0)).columns else 80
    return {"desc": description, "disable": is_quiet() or None, "ncols": width}


@contextlib.contextmanager
def _watched(bar: tqdm, show: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every few seconds while the block runs, unless the bar is disabled."""
    if bar.disable:
        yield
        return

    def watch(done: threading.Event) -> None:
        while not done.wait(seconds):
            show()

    with contextlib.closing(bar), watching(watch, "progress"):
        yield
