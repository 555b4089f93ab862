"""Load ViT-B/32 at full size, from the file to the ready model: `python -m benchmarks.load`.

The time is a ratio to a minimum: reading and hashing the file from the page cache, plus one copy of the weights to
fp32. The peak of anonymous memory, beyond that of `import torch`, is a ratio to the size of the weights in fp32. Each
figure is a median over several fresh processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from clip_transforms.clip.architectures import PUBLISHED
from clip_transforms.clip.tensor_shapes import parameters, tensor_shapes

RUNS = 5
PROGRAM = """
import hashlib, json, sys, threading, time
import torch
from clip_transforms.clip import checkpoints

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

path, what = sys.argv[1:]
before, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], anonymous() - before)
spec = checkpoints.ClipSpec(path, "quick_gelu", "fp32", "cpu")
checkpoint = spec.resolve()
thread = threading.Thread(target=watch)
if what == "memory":
    thread.start()
start = time.perf_counter()
if what == "read":
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
    with open(path, "rb") as file:
        data = file.read()
    read = time.perf_counter()
    half = torch.frombuffer(bytearray(data[:len(data) // 2 * 2]), dtype=torch.float16)
    start_copy = time.perf_counter()
    copy = torch.empty(len(half), dtype=torch.float32).copy_(half)
    seconds = read - start + time.perf_counter() - start_copy
else:
    model = checkpoints.load_checkpoint(checkpoint, "cpu", "fp32")
    seconds = time.perf_counter() - start
done.set()
print(json.dumps({"seconds": seconds, "peak": peak[0]}))
"""


def main() -> None:
    architecture = PUBLISHED["ViT-B/32"].architecture
    torch.manual_seed(0)
    state = {name: torch.randn(shape).half() for name, shape in tensor_shapes(architecture).items()}
    weights = 4 * parameters(architecture)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "model.safetensors", Path(folder) / "model.pt"]
        safetensors.torch.save_file(state, paths[0])
        torch.save(state, paths[1])
        print(f"{os.cpu_count()} cores; ViT-B/32, {parameters(architecture) / 1e6:.1f} M weights, fp16 file to fp32")
        for path in paths:
            pairs = [(_run(path, "load")["seconds"], _run(path, "read")["seconds"]) for _ in range(RUNS)]
            peak = statistics.median(_run(path, "memory")["peak"] for _ in range(RUNS))
            ratio = statistics.median(load / read for load, read in pairs)
            load, read = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"{path.suffix}: load {load:.2f} s, read with hash and copy {read:.2f} s, ratio {ratio:.2f}; "
                f"peak anonymous memory {peak / weights:.2f} of the weights"
            )


def _run(path: Path, what: str) -> dict:
    argv = [sys.executable, "-c", PROGRAM, str(path), what]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
