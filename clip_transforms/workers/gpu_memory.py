"""The free memory of GPUs, asked of CUDA's driver in processes that end at once: one that asks holds some of it.

Run as a file, this module is such a process. It imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Sequence

_SECONDS = 30.0  # a GPU that nobody uses may first have to wake up
_COMPUTE_MODE = 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE; 0 is the default, which admits several processes


def free_bytes(gpus: Sequence[str]) -> list[int | None]:
    """Ask for the free memory of each GPU, of all at the same time.

    Each process sees its GPU as a worker would, so CUDA itself reads the names: indices in its own order, UUIDs, starts
    of UUIDs, MIG instances.

    Args:
        gpus: the GPUs, each in the form of CUDA_VISIBLE_DEVICES.
    Returns:
        Bytes for each GPU; 0 if it admits one process only, and None if there was no answer.
    """
    command = [sys.executable, "-I", __file__]
    asked = [
        subprocess.Popen(
            command,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for gpu in gpus
    ]
    until = time.monotonic() + _SECONDS
    return [_answer(process, until) for process in asked]


def _answer(process: subprocess.Popen, until: float) -> int | None:
    assert process.stdout is not None
    with process.stdout:
        try:
            process.wait(timeout=max(0.0, until - time.monotonic()))  # what it says is short, so it never waits for us
        except subprocess.TimeoutExpired:
            process.kill()
        return int(process.stdout.read()) if process.wait() == 0 else None


def _ask() -> int:
    """Return the free memory of the first GPU that this process sees; 0 if it admits one process only.

    Raises:
        OSError: if there is no driver, or it gives no answer.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    device, mode, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(cuda.cuInit(0))
    _check(cuda.cuDeviceGet(ctypes.byref(device), 0))
    _check(cuda.cuDeviceGetAttribute(ctypes.byref(mode), _COMPUTE_MODE, device))
    if mode.value:
        return 0
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    _check(cuda.cuCtxSetCurrent(context))
    _check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    return free.value


def _check(code: int) -> None:
    if code:
        raise OSError(f"CUDA's driver answers with error {code}")


if __name__ == "__main__":
    print(_ask())
