"""Nothing of a source is executed, fetched from elsewhere, or written outside the output and the temporary folder."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, pair, picture, write_tar
from PIL import Image

# Runs the command under an audit hook, which no code can take away again, and prints what it did.
RUN = """
import json, os, sys
argv = json.loads(sys.argv[1])
from pipelines import embed
import torch, PIL.Image, pyarrow.parquet, apache_beam  # what they do while they are loaded is theirs
seen = []
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        flags = args[2] if isinstance(args[2], int) else 0
        seen.append(["write" if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else "read", os.fsdecode(args[0])])
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.symlink", "os.link", "os.rmdir", "os.chmod"):
        seen.append(["write", *[os.fsdecode(a) for a in args if isinstance(a, (str, bytes))]])
    elif event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork",
                   "os.posix_spawn", "pickle.find_class", "urllib.Request", "ctypes.dlopen"):
        seen.append([event, *[repr(a)[:200] for a in args]])
sys.addaudithook(hook)
code = embed.main(argv)
print(json.dumps({"code": code, "seen": seen}))
"""


@pytest.fixture
def corpus(tmp_path):
    """Sources that would like to do something."""
    folder = tmp_path / "in"
    folder.mkdir()
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(99))
    with tarfile.open(folder / "climbing.tar", "w") as tar:
        for name, data in [("../../escaped.jpg", picture(1)), (f"{tmp_path}/escaped.txt", b"a"), *pair("good", 2)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        device = tarfile.TarInfo("zero.jpg")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
        tar.addfile(device)
    pickled = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path) + b"/owned'\ntR."
    members = [(f"p.{e}", pickled) for e in ("pkl", "pyd", "pth", "npy", "cls", "json", "txt")]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x.png"/></svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch owned) (r) file\n"
    members += [("svg.jpg", svg), ("eps.png", eps), ("pdf.webp", b"%PDF-1.4 /JS (app.launchURL)"), ("x.tif", pickled)]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=b"Exif\0\0" + pickled, icc_profile=pickled)
    members += [("exif.jpg", buffer.getvalue()), ("exif.txt", b"{{7*7}} ${jndi:ldap://127.0.0.1/x} '; DROP TABLE x;")]
    write_tar(folder / "odd.tar", members)
    listed = tmp_path / "lists"
    listed.mkdir()
    (listed / "ok.jpg").write_bytes(picture(3))
    uris = ["ok.jpg", "../secret.jpg", str(secret), f"file://{secret}", "/etc/passwd", "http://127.0.0.1:9/x.jpg"]
    uris += [
        "http://169.254.169.254/latest/",
        "s3://bucket/x",
        "github://a:b@/x",
        "/dev/zero",
        "/dev/stdin",
        "|touch owned",
    ]
    uris += [
        f"simplecache::file://{secret}",
        f"zip://x.jpg::file://{secret}",
        "data:image/png;base64,AAAA",
        "=cmd|'/c'!A1",
    ]
    (listed / "l.csv").write_text("\n".join(["uri", *(f'"{uri}"' for uri in uris)]))
    schema = pa.schema([("uri", pa.string())], {"pandas": "!!python/object/apply:os.system ['touch owned']"})
    pq.write_table(pa.table({"uri": uris}, schema=schema), listed / "l.parquet")
    return [str(folder), str(listed / "l.csv"), str(listed / "l.parquet")], len(uris)


@pytest.mark.timeout(200)
def test_a_hostile_corpus_does_nothing(corpus, tiny_checkpoint, tmp_path):
    inputs, uris = corpus
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    argv = ["--input", *inputs, "--output", str(out), "--model", tiny_checkpoint, "--max_reject_fraction", "1"]
    before = {path for path in tmp_path.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(argv)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=180,
        env={
            **os.environ,
            "PYTHONPATH": ROOT,
            "TMPDIR": str(scratch),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0
    assert ["write", str(out)] in [seen[:2] for seen in found["seen"]]  # the hook is awake
    for event, *paths in found["seen"]:
        if event == "read":
            assert not paths[0].startswith(("/etc/passwd", "/dev/zero", "/dev/stdin", str(tmp_path / "secret.jpg")))
        elif event == "write":
            assert all(path.startswith((str(out), str(scratch), "/dev/null")) or "/" not in path for path in paths), (
                paths
            )
        else:
            # Beam's own workers talk to the launcher over gRPC, whose sockets Python does not see; nothing else does.
            assert event in ("pickle.find_class", "ctypes.dlopen"), (event, paths)
            assert "system" not in " ".join(paths)
    made = {path for path in tmp_path.rglob("*")} - before
    assert all(str(path).startswith((str(out), str(scratch))) for path in made), made
    result = json.loads((out / "run.json").read_text())
    counts = result["input"]
    assert counts["image.rejected.read: not allowed"] + counts["image.rejected.read: not fetched"] == 2 * (uris - 1)
