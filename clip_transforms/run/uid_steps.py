"""The steps of an export of DataComp's uids: a file for each part, then all of them sorted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clip_transforms import storage
from clip_transforms.exports import uids
from clip_transforms.run.new_output import WORK
from clip_transforms.run.over_parts import Step

if TYPE_CHECKING:
    from clip_transforms.run.export_steps import Exporting, State


@dataclasses.dataclass(frozen=True)
class WriteUids(Step):
    """Part → counts of its uids, which lie in a file of their own until all are sorted."""

    run: Exporting
    threaded = True

    def items(self, state: State) -> Iterator[str]:
        """Yield the names of the parts."""
        return (part for part, _ in state.parts)

    def do(self, item: str) -> Counter:
        """Write the uids of a part."""
        run = self.run
        has_column = "uid" in run.layout.columns
        return uids.write_part(run.rows, item, has_column, _uids_of(run, item), run.folder)

    def after(self, state: State, total: Counter) -> State:
        """Count the rows that are left out."""
        return state.without({"without uid": total["without uid"]})


@dataclasses.dataclass(frozen=True)
class SortUids(Step):
    """Parts → number of their uids."""

    run: Exporting

    def items(self, state: State) -> Iterator[list[str]]:
        """Yield the names of all parts at once."""
        yield [part for part, _ in state.parts]

    def do(self, item: list[str]) -> Counter:
        """Sort the uids of all parts."""
        return Counter(uids=uids.write_uids([_uids_of(self.run, part) for part in item], *self.run.places))

    def after(self, state: State, total: Counter) -> State:
        """Count the rows that are left out."""
        return state.without({"named more than once": state.exported - total["uids"]})


def _uids_of(run: Exporting, part: str) -> str:
    return storage.join(run.new.uri, WORK, f"{part}.npy")
