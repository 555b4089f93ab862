"""Python imports this at its start where this folder is on PYTHONPATH: tests change their child processes through it.

`CLIP_TRANSFORMS_TEST_AMX=0` or `1`: bf16 is measured to be slower than fp32, or as much faster as with AMX.
`CLIP_TRANSFORMS_TEST_SLOW_COMMITS=1`: a part takes half a second to get its name in an output called `slow`.
"""

import os
import sys
import time
from importlib.machinery import PathFinder

MEASURES = "clip_transforms.clip.precision"


class FakeAmx:
    """A finder that changes what is measured of the processor, when the module that measures is imported."""

    def __init__(self, answer):
        self.answer = answer

    def find_spec(self, name, path, target=None):
        if name != MEASURES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec

    def change(self, module):
        module.bf16_speedup = lambda: self.answer


if answer := os.environ.get("CLIP_TRANSFORMS_TEST_AMX"):
    fake = FakeAmx({"0": 0.7, "1": 6.0}[answer])
    if MEASURES in sys.modules:
        fake.change(sys.modules[MEASURES])
    else:
        sys.meta_path.insert(0, fake)

if os.environ.get("CLIP_TRANSFORMS_TEST_SLOW_COMMITS"):
    replace = os.replace

    def slow_replace(source, target):
        time.sleep(0.5 * any(f"/slow/{kind}/" in str(target) for kind in ("embeddings", "shards")))
        return replace(source, target)

    os.replace = slow_replace
