"""The free memory of GPUs, and the estimate of what a process takes of it. CUDA's driver is one that is built here."""

import os
import re
import shutil
import subprocess
import weakref
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from clip_transforms.clip.architectures import PUBLISHED, Architecture
from clip_transforms.clip.folding import fold
from clip_transforms.clip.model import ClipModel
from clip_transforms.clip.tensor_shapes import parameters
from clip_transforms.run.places import process_bytes
from clip_transforms.workers import gpu_memory

# A driver whose one GPU has as much free memory as its name says, in GB: CUDA_VISIBLE_DEVICES decides, as with CUDA.
DRIVER = """
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const char *name(void) { return getenv("CUDA_VISIBLE_DEVICES"); }
static int begun, retained, current;
int cuInit(unsigned flags) { begun = 1; return strcmp(name(), "no-such-gpu") ? 0 : 100; }
int cuDeviceGet(int *device, int ordinal) { *device = 70; return begun && ordinal == 0 ? 0 : 3; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = strcmp(name(), "exclusive") ? 0 : 3;
    return attribute == 20 && device == 70 ? 0 : 1;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (!strcmp(name(), "full")) return 2;
    *context = (void *)0x7f0000000001; retained = 1;
    return device == 70 ? 0 : 1;
}
int cuCtxSetCurrent(void *context) { current = context == (void *)0x7f0000000001; return current ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (!current || !retained) return 201;
    if (!strcmp(name(), "asleep")) sleep(60);
    *free = (size_t)atoi(name() + strcspn(name(), "-") + 1) * 1000000000; *total = (size_t)99 << 30;
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a driver with")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True, timeout=60)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("LD_LIBRARY_PATH")]))
    monkeypatch.setenv("LD_LIBRARY_PATH", path)


def test_each_gpu_is_asked_under_the_name_that_its_process_will_see(driver):
    gpus = ["GPU-80", "MIG-9", "no-such-gpu", "exclusive", "full", "0-24"]
    assert gpu_memory.free_bytes(gpus) == [80_000_000_000, 9_000_000_000, None, 0, None, 24_000_000_000]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_gpu_that_does_not_answer_is_not_waited_for(driver, monkeypatch):
    monkeypatch.setattr(gpu_memory, "_SECONDS", 3.0)
    assert gpu_memory.free_bytes(["asleep", "GPU-7"]) == [None, 7_000_000_000]


def test_without_a_driver_nothing_is_known(tmp_path, monkeypatch):
    (tmp_path / "libcuda.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert gpu_memory.free_bytes(["0"]) == [None]


# The estimate


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once, beside those that are known."""

    def __init__(self, known):
        super().__init__()
        self._known, self.now, self.most = {tensor.untyped_storage()._cdata for tensor in known}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, made)
        return made

    def _see(self, tensor):
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name not in self._known:
            self._known.add(name)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, name, size)

    def _drop(self, name, size):
        self._known.discard(name)
        self.now -= size


def held_by_a_pass(architecture, batch, dtype):
    """The most bytes that a pass of pictures or captions holds; on the meta device, which computes nothing."""
    with torch.device("meta"):
        model = ClipModel(architecture, "quick_gelu")
        fold(model)
        model = model.to(dtype).eval()
        pixels = torch.empty(batch, 3, architecture.image_side, architecture.image_side, dtype=torch.uint8)
        tokens = torch.empty(batch, architecture.context_length, dtype=torch.int32)
        most = []
        for encode, inputs in ((model.encode_images, pixels), (model.encode_tokens, tokens)):
            with torch.inference_mode(), Held([*model.parameters(), *model.buffers(), inputs]) as held:
                encode(inputs)
            most.append(held.most)
    return max(most)


def test_the_documents_show_the_estimate_of_every_published_model():
    table = Path(ROOT, "docs", "performance.md").read_text().partition("## Processes of a GPU")[2].partition("\n## ")[0]
    shown = dict(re.findall(r"^\| (\S+) \| ([0-9.]+) \|$", table, re.MULTILINE))
    assert shown == {name: f"{process_bytes(it.architecture, 'auto', 0) / 1e9:.1f}" for name, it in PUBLISHED.items()}


OTHER = Architecture(512, 224, 4, 768, 32, 512, text_layers=2, vision_mlp_width=1000, text_mlp_width=5000)


@pytest.mark.parametrize("batch, precision, dtype", [(256, "auto", torch.float16), (300, "fp32", torch.float32)])
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14@336px", "RN50", "RN50x64", "another"])
def test_the_estimate_is_that_of_two_batches_beside_the_weights(name, batch, precision, dtype):
    architecture = PUBLISHED[name].architecture if name in PUBLISHED else OTHER
    held = held_by_a_pass(architecture, batch, dtype)
    weights = parameters(architecture) * {"auto": 6, "fp32": 4}[precision]
    estimate = process_bytes(architecture, precision, 0 if batch == 256 else batch)
    batches = estimate - (1 << 30) - weights
    assert 1.9 * held <= batches <= 2.1 * held
