"""Resume over a hundred thousand parts in an object store: `python -m benchmarks.object_store [UNITS]`.

The store is moto, in a process of its own. moto sorts the whole bucket again for each page of a listing, so this
process answers list requests itself, from moto's objects. All other requests go to moto.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.many_units import MEASURED, commit_all, write_tars
from clip_transforms.parts.footer_text import footer_text
from clip_transforms.parts.kept_footers import tidy_footers, write_kept
from schemas.kept_footers import KEPT_FOOTERS

UNITS, TASK = 100_000, 64
KINDS = ("embeddings", "rejects")
OUT = "s3://bucket/out"


def serve(folder: str) -> None:
    """Serve the files of a folder as `s3://bucket/out`; print the port, and the requests so far for each line read."""
    import logging

    import moto.server
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication
    from moto.s3.models import s3_backends

    logging.getLogger("werkzeug").setLevel("ERROR")
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket("bucket", "us-east-1")
    for path in Path(folder).rglob("*"):
        if path.is_file():
            store.put_object("bucket", f"out/{path.relative_to(folder)}", path.read_bytes())
    keys = store.get_bucket("bucket").keys
    seen: Counter = Counter()
    answer = DomainDispatcherApplication.__call__

    def call(self: Any, environ: dict[str, Any], start: Any) -> Any:
        query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
        listed = "list-type" in query
        place = query.get("prefix", "") if listed else environ["PATH_INFO"].removeprefix("/bucket/")
        kind = "_footers" if "_footers" in place else next((k for k in KINDS if f"/{k}/" in f"{place}/"), "else")
        seen[f"{'LIST' if listed else environ['REQUEST_METHOD']} {kind}"] += 1
        if not listed:
            return answer(self, environ, start)
        start("200 OK", [("Content-Type", "application/xml")])
        return [page(keys, query).encode()]

    DomainDispatcherApplication.__call__ = call
    server = moto.server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    for _ in sys.stdin:
        print(json.dumps([seen, time.process_time()]), flush=True)
        seen.clear()
    server.stop()


def page(keys: Any, query: dict[str, str]) -> str:
    """Answer a list request as S3 does, with up to a thousand keys."""
    names = sorted(keys) if len(_SORTED) != len(keys) else _SORTED
    _SORTED[:] = names
    prefix, delimiter, most = query.get("prefix", ""), query.get("delimiter"), int(query.get("max-keys", 1000))
    start = query.get("continuation-token")
    place = bisect.bisect_left(names, prefix) if start is None else bisect.bisect_right(names, start)
    found: list[str] = []
    last = ""
    while place < len(names) and names[place].startswith(prefix) and len(found) < most:
        key = names[place]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            file = keys[key]
            found.append(
                f"<Contents><Key>{urllib.parse.quote(key)}</Key><LastModified>2026-01-31T23:59:59.000Z</LastModified>"
                f"<ETag>{file.etag}</ETag><Size>{file.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
            place, last = place + 1, key
        else:
            found.append(f"<CommonPrefixes><Prefix>{urllib.parse.quote(key[: cut + 1])}</Prefix></CommonPrefixes>")
            last = f"{key[: cut + 1]}\U0010ffff"
            place = bisect.bisect_left(names, last)
    more = place < len(names) and names[place].startswith(prefix)
    token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
    return (
        "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Name>bucket</Name>"
        f"<EncodingType>url</EncodingType><KeyCount>{len(found)}</KeyCount>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(found)}</ListBucketResult>"
    )


_SORTED: list[str] = []


@contextlib.contextmanager
def served(folder: Path) -> Iterator[subprocess.Popen]:
    """Start the server, and point s3fs to it, here and in processes that this one starts."""
    command = [sys.executable, "-c", "import sys; from benchmarks.object_store import serve; serve(sys.argv[1])"]
    server = subprocess.Popen([*command, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
        yield server
    finally:
        assert server.stdin
        server.stdin.close()
        server.wait()


def keep_all(out: Path) -> None:
    """Keep the footers of all parts, as tasks of 64 units do."""
    for kind in KINDS:
        paths = sorted((out / kind).iterdir())
        for i in range(0, len(paths), TASK):
            rows = []
            for path in paths[i : i + TASK]:
                data = path.read_bytes()
                stamp = f"{len(data)}-{hashlib.md5(data).hexdigest()}"
                rows.append({"part": path.stem, "stamp": stamp, "footer": footer_text(str(path))})
            write_kept(OUT, kind, [pa.RecordBatch.from_pylist(rows, KEPT_FOOTERS)])


def run(what: str, server: subprocess.Popen, argv: list[str]) -> None:
    """Run the command in a process of its own, and print what it and the server did."""
    assert server.stdin and server.stdout
    before = asked(server)[1]
    done = subprocess.run([sys.executable, "-c", MEASURED, *argv], check=True, capture_output=True, text=True)
    found, (seen, after) = json.loads(done.stdout.splitlines()[-1]), asked(server)
    print(
        f"{what}: {found['seconds']:.1f} s, {found['cpu_seconds']:.1f} s of a core, {found['megabytes']:,.0f} MB at "
        f"the peak; the server took {after - before:.1f} s of a core for {dict(sorted(seen.items()))}"
    )


def asked(server: subprocess.Popen) -> tuple[dict[str, int], float]:
    """The server's requests since the last question, and its CPU seconds."""
    assert server.stdin and server.stdout
    server.stdin.write("\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def main() -> None:
    units = int(sys.argv[1]) if len(sys.argv) > 1 else UNITS
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tars(root, units)
        here = ["--input", f"{root}/tars/*.tar", "--output", f"{root}/out", "--model", "demo"]
        commit_all(root, here)
        there = [*here[:3], OUT, *here[4:]]
        with served(root / "out") as server:
            print(f"{os.cpu_count()} cores; {units:,} empty tars here, their parts in moto; times include imports")
            if units <= 10_000:
                run("resumed without kept footers", server, there)
            keep_all(root / "out")
            asked(server)
            run("resumed after a kill, with a file of kept footers for each task", server, there)
            tidy_footers(OUT, KINDS)
            asked(server)
            run("resumed after an end, with one file", server, there)


if __name__ == "__main__":
    main()
