"""What tests/hooks does to the child processes of tests."""

import os
import subprocess
import sys

import pytest
from conftest import HOOKS, ROOT

ASKED = """
import os, sys, time
assert "torch" not in sys.modules
from clip_transforms.clip.checkpoints import resolve_device
from clip_transforms.clip.precision import resolve_precision
os.makedirs(sys.argv[1] + "/slow/embeddings")
open(sys.argv[1] + "/part", "w").close()
start = time.perf_counter()
os.replace(sys.argv[1] + "/part", sys.argv[1] + "/slow/embeddings/part")
print(resolve_precision("auto", resolve_device("cpu")), time.perf_counter() - start > 0.4)
"""


@pytest.mark.parametrize("amx, precision, slow", [("0", "fp32", ""), ("1", "bf16", "1")])
def test_a_child_process_has_amx_and_slow_commits_as_it_is_told(amx, precision, slow, tmp_path):
    hooks = {"CLIP_TRANSFORMS_TEST_AMX": amx, "CLIP_TRANSFORMS_TEST_SLOW_COMMITS": slow, "PYTHONPATH": HOOKS}
    argv = [sys.executable, "-c", ASKED, str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ | hooks, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [precision, str(bool(slow))], done.stderr
