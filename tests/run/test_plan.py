"""Planning leaves the process as it was."""

import gc

import pytest
from conftest import make_tar

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import PlanError


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_after_planning_as_before(enabled, tmp_path):
    made = Settings((make_tar(tmp_path / "a.tar", 1),), str(tmp_path / "out"), ClipSpec("demo"))
    wrong = Settings((str(tmp_path / "no.tar"),), str(tmp_path / "out"), ClipSpec("demo"))
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        assert len(plan_run(made).units) == 1 and gc.isenabled() is enabled
        with pytest.raises(PlanError, match="matches nothing"):
            plan_run(wrong)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
