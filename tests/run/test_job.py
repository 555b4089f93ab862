"""A worker reads the units of its task from the plan, whatever the row groups in which the plan was written."""

import dataclasses

from conftest import make_tar

from clip_transforms import ClipSpec
from clip_transforms.run import job as job_module
from clip_transforms.run.begin import begin_run
from clip_transforms.run.job import read_units
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings

COUNT = 20_000


def test_any_range_of_units_is_read_and_no_more_than_the_row_groups_of_it(tmp_path, tiny_checkpoint, monkeypatch):
    make_tar(tmp_path / "0.tar", 1)
    plan = plan_run(Settings((f"{tmp_path}/*.tar",), f"{tmp_path}/out", ClipSpec(tiny_checkpoint)))
    (planned,) = plan.units
    parts = [f"part-{i}" for i in range(COUNT)]
    plan.units = [dataclasses.replace(planned, unit=dataclasses.replace(planned.unit, part=part)) for part in parts]
    job, folder = begin_run(plan, 1, ())
    read = []
    whole = job_module.pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        job_module.pq.ParquetFile, "read_row_group", lambda self, i, **kw: read.append(i) or whole(self, i, **kw)
    )
    with folder:
        edges = [(0, 64), (4_000, 4_096), (4_096, 4_097), (4_090, 8_200), (19_999, COUNT), (0, 0), (5, 5), (0, COUNT)]
        for start, stop in edges:
            assert [found.unit.part for found in read_units(job, start, stop)] == parts[start:stop]
        read.clear()
        job_module._read_rows.cache_clear()
        for start, stop in job.tasks():
            read_units(job, start, stop)
        assert read == [0, 1, 2, 3, 4], "each once"
