"""Python imports this at its start where this folder is on PYTHONPATH: tests change their child processes through it.

`CLIP_TRANSFORMS_TEST_AMX=0` or `1`: torch says that the processor has no AMX, or that it has.
`CLIP_TRANSFORMS_TEST_SLOW_COMMITS=1`: a part takes half a second to get its name in an output called `slow`.
"""

import os
import sys
import time
from importlib.machinery import PathFinder


class FakeAmx:
    """A finder that changes `torch.cpu` when torch imports it; a process that never needs torch does not import it."""

    def __init__(self, answer):
        self.answer = answer

    def find_spec(self, name, path, target=None):
        if name != "torch.cpu":
            return None
        spec = PathFinder.find_spec(name, path, target)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec

    def change(self, module):
        original = module.get_capabilities
        module.get_capabilities = lambda: {**original(), "amx_bf16": self.answer}


if answer := os.environ.get("CLIP_TRANSFORMS_TEST_AMX"):
    fake = FakeAmx({"0": False, "1": True}[answer])
    if "torch.cpu" in sys.modules:
        fake.change(sys.modules["torch.cpu"])
    else:
        sys.meta_path.insert(0, fake)

if os.environ.get("CLIP_TRANSFORMS_TEST_SLOW_COMMITS"):
    replace = os.replace

    def slow_replace(source, target):
        time.sleep(0.5 * any(f"/slow/{kind}/" in str(target) for kind in ("embeddings", "shards")))
        return replace(source, target)

    os.replace = slow_replace
