"""Servers that tests start on loopback, each ended by its own handle."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT
from forked import Process

# Beam's servers listen on every interface; a test's server must listen on loopback alone.
LOOPBACK = """
import grpc, runpy, sys
start = grpc.server
def server(*args, **kwargs):
    made = start(*args, **kwargs)
    add = made.add_insecure_port
    made.add_insecure_port = lambda address: add(address.replace("[::]", "127.0.0.1"))
    return made
grpc.server = server
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(module, *argv, env):
    """A server of Beam's as a process of its own, ended by its own handle, with all that it started."""
    process = Process(
        "-c",
        LOOPBACK,
        module,
        *argv,
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def daemon(log, *argv, env=None):
    """A program that does not end by itself; it is ended by its own handle."""
    with open(log, "wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, env=env)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True


@contextlib.contextmanager
def portable(env=os.environ, pool_path=None):
    """The flags of PortableRunner against a job service and an external worker pool.

    The pool finds its `python` in the folder `pool_path`, by default that of this process.
    """
    jobs, pool = free_port(), free_port()
    env = env | {
        "PATH": f"{pool_path or os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        "CLIP_TRANSFORMS_TEST_POOL": str(pool),
    }
    with (
        server("apache_beam.runners.portability.local_job_service_main", f"--job_port={jobs}", env=env),
        server("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}", env=env),
    ):
        wait_for(lambda: answers(jobs) and answers(pool), 60)
        yield [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{jobs}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{pool}",
        ]


def workers_of(flags):
    """The processes that the pool of these flags of `portable` has started."""
    mark = b"CLIP_TRANSFORMS_TEST_POOL=" + flags[-1].rpartition(":")[2].encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_it = mark in (folder / "environ").read_bytes().split(b"\0")
            if of_it and b"SdkHarness" in (folder / "cmdline").read_bytes():
                yield int(folder.name)


def wait_for(condition, seconds):
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing after {seconds} s")
