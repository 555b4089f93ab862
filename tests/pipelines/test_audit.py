"""Nothing of a source is executed, fetched from elsewhere, or written outside the output and the temporary folder."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import ROOT, pair, picture, rows_of

# The hook is set before anything is imported, and it cannot be removed. Python's own events are known: it writes
# no byte code here, and it compiles modules only from its own folders and those of the packages.
AUDITED = """
import json, os, sys, threading
found, inside = [], [os.path.realpath(path) + os.sep for path in json.loads(sys.argv.pop(1))]
sources = os.path.realpath(sys.argv.pop(1)) + os.sep
started = []
def outside(path):
    if isinstance(path, int):
        return False
    path = os.path.realpath(os.fsdecode(path))
    return not (path + os.sep).startswith(tuple(inside)) and not path.startswith(("/dev/null", "/proc/"))
def hook(event, args):
    if event == "open":
        path, mode, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes and outside(path):
            found.append((event, str(path)))
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.utime", "os.chown"):
        folder = args[-1] if event in ("os.mkdir", "os.remove", "os.rmdir") else -1  # an open one, or none
        path = args[0] if folder == -1 else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(args[0]))
        if outside(path):
            found.append((event, str(path)))
    elif event in ("os.rename", "os.link", "os.symlink"):
        if outside(args[0]) or outside(args[1]):
            found.append((event, str(args[:2])))
    elif event in ("socket.connect", "socket.sendto"):
        address = args[1]
        if not (isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")):
            found.append((event, str(address)))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "ftplib.connect", "smtplib.connect"):
        if started and args[0] not in (None, "localhost", "127.0.0.1"):
            found.append((event, str(args[:2])))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"):
        if started:
            found.append((event, str(args[:2])))
    elif event in ("exec", "compile", "import", "ctypes.dlopen"):
        name = {"exec": lambda: args[0].co_filename, "compile": lambda: args[1], "import": lambda: args[1]}.get(event)
        name = os.fsdecode((name() if name else args[0]) or "") if not callable(args[0]) else ""
        if name.startswith("/") and os.path.realpath(name).startswith((sources, *inside)):
            found.append((event, name))
    elif event == "pickle.find_class":
        if args[0] in ("os", "posix", "subprocess", "builtins") and args[1] in ("system", "Popen", "eval", "exec"):
            found.append((event, str(args)))
sys.addaudithook(hook)
from pipelines import embed
import torch, clip_transforms.engine.forward  # their imports query the platform
started.append(True)
code = embed.main(sys.argv[1:])
started.clear()
print(json.dumps({"code": code, "found": found}))
"""


class Bomb:
    """A pickle that runs a command."""

    def __reduce__(self):
        return os.system, ("touch /tmp/clip-transforms-was-here",)


def add(tar, name, data=b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


SVG = b'<!DOCTYPE a [<!ENTITY x SYSTEM "http://192.0.2.1/x">]><svg><image href="http://192.0.2.1/"/>&x;</svg>'
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch /tmp/clip-transforms-was-here) (w) file\nshowpage\n"
)


def hostile(path):
    """Write a folder, a tar, a Parquet file and a listing that attempt every known attack."""
    bomb = pickle.dumps(Bomb())
    (path / "photos").mkdir(parents=True)
    for name, data in {
        "good.jpg": picture(0),
        "svg.png": SVG,
        "eps.jpg": EPS,
        "pickle.jpg": bomb,
        "code.jpg": b"#!/bin/sh\ntouch /tmp/clip-transforms-was-here\n",
        "code.py.jpg": picture(1),
        "$(touch x).jpg": picture(2),
        "; rm -rf x.jpg": picture(3),
    }.items():
        (path / "photos" / name).write_bytes(data)
    (path / "photos" / "good.json").write_text('{"__class__": "os.system", "url": "http://192.0.2.1/"}')
    (path / "photos" / "sitecustomize.py").write_text("raise SystemExit('executed')")
    (path / "photos" / "conftest.py").write_text("raise SystemExit('executed')")
    with tarfile.open(path / "climbing.tar", "w") as tar:
        for name, data in pair("plain", 4):
            add(tar, name, data)
        for i, name in enumerate(("/tmp/clip-transforms-was-here", "../../climbed", "a/../../b", "~/.bashrc")):
            add(tar, f"{name}.jpg", picture(5 + i))
            add(tar, f"{name}.txt", b"a caption")
        add(tar, "link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="plain.jpg")
        add(tar, "device.jpg", type=tarfile.CHRTYPE)
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(tar, "setuid.jpg", picture(9), mode=0o6777, uid=0)
        add(tar, "code.json", b"{\"caption\": \"__import__('os').system('x')\"}")
        add(tar, "code.jpg", bomb)
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": bomb}
    fields = [
        pa.field("image", pa.binary()),
        pa.field("caption", pa.string()),
        pa.field("x", pa.binary(), metadata=extension),
    ]
    schema = pa.schema(fields, metadata={"pandas": "{}", "huggingface": '{"info": {"features": {}}}', "clip": "{}"})
    rows = {"image": [picture(10), bomb, EPS, SVG], "caption": ["a", "{}", "%s %n", "$(touch x)"], "x": [b""] * 4}
    pq.write_table(pa.table(rows, schema=schema), path / "rows.parquet")
    uris = [
        "photos/good.jpg",
        "../climbed.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://192.0.2.1/x.jpg",
        "gopher://x/",
    ]
    uris += ["http://169.254.169.254/latest/meta-data/", "photos/good.jpg::file:///etc/passwd"]
    (path / "rows.csv").write_text("uri,caption\n" + "".join(f"{uri},=cmd|'touch x'\n" for uri in uris))
    (path / "words.json").write_text('{"classes": ["$(touch x)", "{__class__}", {"name": "x", "prompts": ["{0.x}"]}]}')


def test_nothing_of_a_hostile_source_is_executed_fetched_or_written_elsewhere(tmp_path, tiny_checkpoint):
    sources, out, scratch = tmp_path / "sources", tmp_path / "out", tmp_path / "scratch"
    sources.mkdir()
    scratch.mkdir()
    hostile(sources)
    before = {path: path.lstat().st_mtime_ns for path in sources.rglob("*")}
    argv = ["--input", sources / "photos", sources / "climbing.tar", sources / "rows.parquet"]
    argv += [sources / "rows.csv", "--output", out]
    argv += ["--model", tiny_checkpoint, "--precision=fp32"]
    argv += ["--taxonomy", sources / "words.json", "--max_reject_fraction", "1"]
    argv += ["--processes", "1"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    environment = inherited | {"TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-c", AUDITED, json.dumps([str(out), str(scratch)]), str(sources), *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=sources / "photos",  # where a careless import would find code
        timeout=110,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"code": 0, "found": []}
    assert not os.path.exists("/tmp/clip-transforms-was-here") and not (tmp_path / "climbed.jpg").exists()
    assert {path: path.lstat().st_mtime_ns for path in sources.rglob("*")} == before
    assert [path.name for path in scratch.iterdir() if not path.name.startswith("torchinductor_")] == []
    keys = {row["key"] for row in rows_of(out)}
    assert {"good.jpg", "code.py.jpg", "$(touch x).jpg", "/tmp/clip-transforms-was-here", "../../climbed"} <= keys
    rejects = rows_of(out, "rejects")
    assert len([row for row in rejects if "rows.csv" in row["shard"]]) == 7
    refused = {row["key"] for row in rejects}
    assert {"svg.png", "eps.jpg", "pickle.jpg", "code.jpg", "link", "device", "pipe"} <= refused


def test_the_hook_of_this_test_sees_what_it_is_there_for(tmp_path):
    """Do each forbidden thing on purpose, in place of the command."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "evil.py").write_text("x = 1")
    deeds = [
        "open(sources + '/../elsewhere', 'w').close()",
        "os.rename(sources + '/../elsewhere', sources + '/../other')",
        "os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "exec(compile(open(sources + '/evil.py').read(), sources + '/evil.py', 'exec'))",
        "sys.path.insert(0, sources); import evil",
        "import socket; s = socket.socket(); s.settimeout(0.01); s.connect_ex(('192.0.2.1', 9))",
        "import pickle; pickle.loads(b'cposix\\nsystem\\n.')",
    ]
    code = AUDITED.replace("from pipelines import embed", "").replace("import torch, ", "# ")
    code = code.replace("code = embed.main(sys.argv[1:])", "exec(sys.argv[1]); code = 0")
    for deed in deeds:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps([str(tmp_path / "out")]), str(sources), deed],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["found"], deed
