"""Start Python programs of ours quickly: a process that has imported Beam and torch once is forked for each.

A command spends some four seconds of a core on imports of other people's packages, and the tests start hundreds. The
forked process has its own streams, environment, folder, signals and process id, imports our own modules anew, and is
a child of the process that asked for it. A test of what a program imports must start one by `subprocess` instead.
"""

import array
import atexit
import contextlib
import ctypes
import inspect
import os
import pickle
import runpy
import socket
import subprocess
import sys
import threading
import types

FOLDER = os.path.dirname(os.path.abspath(__file__))
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
# What an interpreter reads at its start; a process that shall have others is started anew.
_AT_START = ("PYTHON", "LC_", "LANG", "OMP_", "MKL_", "LD_")
_PRELOADED = (
    "apache_beam",
    "apache_beam.runners.portability.fn_api_runner",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch",
    "tqdm",
)


class Process(subprocess.Popen):
    """A `subprocess.Popen` of `python argv…`, forked instead of started anew where that is possible.

    `argv` begins with `-m` and a module, or with `-c` and a program.
    """

    def __init__(self, *argv, **kwargs):
        self._forks = sys.platform == "linux" and "preexec_fn" not in kwargs
        self._forks = self._forks and _at_start(kwargs.get("env") or os.environ) == _at_start(os.environ)
        super().__init__([sys.executable, *map(str, argv)], **kwargs)

    def _execute_child(self, *args):
        names = inspect.signature(subprocess.Popen._execute_child).bind(self, *args).arguments
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        if not (self._forks and {"args", "cwd", "env", *pipes} <= names.keys()):
            return super()._execute_child(*args)
        request = {
            "argv": names["args"][1:],
            "session": bool(names.get("start_new_session")),
            "cwd": str(names["cwd"] or os.getcwd()),
            "env": dict(names["env"] or os.environ),
        }
        streams = (names["p2cread"], names["c2pwrite"], names["errwrite"])
        streams = [given if given >= 0 else inherited for inherited, given in enumerate(streams)]
        self.pid = _forked(request, streams)
        self._child_created = True
        self._close_pipe_fds(*(names[pipe] for pipe in pipes))


def _at_start(environment):
    return {k: v for k, v in environment.items() if k.startswith(_AT_START) and k != "PYTHONPATH"}


def _forked(request, streams):
    """Have a process forked; its id."""
    server = _server()
    server.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
    data = pickle.dumps(request)
    server.sendall(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(_received(server, 8), "little")


def run(*argv, timeout=100, **kwargs):
    """Run `python argv…` to its end, and return it with its output."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Process(*argv, **(pipes | kwargs)) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


_servers: dict[int, socket.socket] = {}


def _server():
    """The socket of this process's server, which ends with this process."""
    if os.getpid() not in _servers:
        # A forked process loses its parent, which ends at once, and becomes a child of this process.
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"import sys; sys.path.insert(0, {FOLDER!r}); import forked; forked.serve({theirs.fileno()})"
            subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        _servers[os.getpid()] = ours
    return _servers[os.getpid()]


def _received(connection, count):
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError("the other side has ended")
        data += more
    return data


def serve(number):
    """Fork a process for each request, until the process that asks ends."""
    connection = socket.socket(fileno=number)
    import logging

    logging.disable(logging.WARNING)
    for name in _PRELOADED:
        __import__(name)
    logging.disable(logging.NOTSET)
    ours = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = [place for place in sys.path[2:] if place not in ours]  # after our folder and the place of -c
    while True:
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * array.array("i").itemsize))
        if not ancillary:
            return
        streams = array.array("i", ancillary[0][2])
        request = pickle.loads(_received(connection, int.from_bytes(_received(connection, 8), "little")))
        answer, told = os.pipe()
        between = os.fork()
        if not between:
            pid = os.fork()
            if pid:
                os.write(told, pid.to_bytes(8, "little"))
                os._exit(0)
            for descriptor in (answer, told, connection.detach()):
                os.close(descriptor)
            _run(request, streams, path)
        os.waitpid(between, 0)
        connection.sendall(os.read(answer, 8))
        for descriptor in (answer, told, *streams):
            os.close(descriptor)


def _run(request, streams, path):
    """Be `python argv…`, from here to the end of the process."""
    if request["session"]:
        os.setsid()
    for target, descriptor in enumerate(streams):
        os.dup2(descriptor, target)
    for descriptor in streams:
        if descriptor > 2:
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    places = [place for place in request["env"].get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [request["cwd"], *places, *path]
    sys.modules.pop("forked", None)
    for place in places:
        hook = os.path.join(place, "sitecustomize.py")
        if os.path.exists(hook):
            runpy.run_path(hook)
            break
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    _end(_code_of(*request["argv"]))


def _code_of(kind, program, *argv):
    """Run a program to its end; the exit code."""
    try:
        if kind == "-m":
            sys.argv = [program, *argv]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *argv]
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code):
    """End this process as Python does, but for taking apart what other packages hold, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
