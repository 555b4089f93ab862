"""The steps of one run of `evaluate`, and the files that it leaves."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.run.evaluate_record import Outcome
from clip_transforms.run.evaluate_steps import EmbedClasses, Evaluating
from clip_transforms.run.over_parts import Step
from clip_transforms.run.probe_steps import probe_steps
from clip_transforms.run.retrieval_steps import retrieval_steps
from clip_transforms.run.zeroshot_steps import zeroshot_steps
from schemas.evaluation import per_class_schema, per_group_schema

RECORD, PER_CLASS, PER_GROUP = "metrics.json", "per_class.parquet", "per_group.parquet"


@dataclasses.dataclass(frozen=True)
class EvaluationWork:
    """What a run of `evaluate` does.

    Attributes:
        run: what every step knows.
        measures: what is measured.
        fingerprint: fingerprint of the dataset.
    """

    run: Evaluating
    measures: tuple[str, ...]
    fingerprint: str

    @property
    def steps(self) -> Sequence[Step]:
        """Embed classes that are missing, then measure one thing after the other."""
        of = {"zeroshot": zeroshot_steps, "retrieval": retrieval_steps, "probe": probe_steps}
        return [EmbedClasses(self.run), *(step for name in self.measures for step in of[name](self.run))]

    def finish(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the tables, `metrics.json` and `_SUCCESS`."""
        run, outcome = self.run, Outcome()
        if "zeroshot" in self.measures:
            names = {of.name: of.names for of in run.classes}
            outcome.add_zeroshot(state["zeroshot"], names, state.get("rankings", {}))
        if "retrieval" in self.measures:
            outcome.add_retrieval(state["retrieval"])
        if "probe" in self.measures:
            outcome.add_probe(state["probe"])
        content = {
            "dataset": run.source.dataset,
            "fingerprint": self.fingerprint,
            "made_by": {name: value for name, value in run.new.command.items() if name not in ("format", "writes")},
            **outcome.content,
        }
        if run.source.group_column:
            content["groups"] = {"column": run.source.group_column, "spreads": outcome.spreads()}
        for name, rows, schema in (
            (PER_CLASS, outcome.classes, per_class_schema()),
            (PER_GROUP, outcome.groups, per_group_schema()),
        ):
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
            storage.write_bytes(storage.join(run.new.uri, name), sink.getvalue(), run.folder)
        return run.new.finish(content, run.folder)
