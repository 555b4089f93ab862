"""The last step of an export of tars: name the rows whose pictures were lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from clip_transforms.exports.left_out import write_left_out
from clip_transforms.exports.webdataset import stats_uri
from clip_transforms.run.over_parts import Step

if TYPE_CHECKING:
    from clip_transforms.run.export_steps import Exporting, State


@dataclasses.dataclass(frozen=True)
class NameLost(Step):
    """Number of tars → number of rows that are named; nothing is done if none was lost."""

    run: Exporting

    def items(self, state: State) -> Iterator[int]:
        """Yield the number of tars, with those that came out empty."""
        if any(state.left_out.values()):
            yield sum(group.files for group in state.groups(self.run.layout.per_shard))

    def do(self, item: int) -> Counter:
        """Write `left_out.parquet`."""
        output, scratch = self.run.places
        return Counter(named=write_left_out([stats_uri(output, n, item) for n in range(item)], output, scratch))

    def after(self, state: State, total: Counter) -> State:
        """Return the state as it was."""
        if total["named"] != sum(state.left_out.values()):
            raise RuntimeError(f"{total['named']} rows are named of {dict(state.left_out)}; please report this")
        return state
