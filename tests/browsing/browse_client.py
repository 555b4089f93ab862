"""A dataset with everything that a page must bear, and a browser's requests to the application, without a port."""

import asyncio
import json
from typing import NamedTuple

from conftest import make_folder, pair, picture, write_tar

from clip_transforms import ClipSpec, ReaderOptions, Taxonomy, embed_shards
from clip_transforms.browsing.app import make_app
from clip_transforms.browsing.guard import Guard
from clip_transforms.browsing.plan import plan_browse
from clip_transforms.browsing.session import Session

HOST = "127.0.0.1:8642"
HOSTILE = {
    "script": "<script>document.title = 'owned'</script>",
    "onerror": '"><img src=x onerror="document.title=\'owned\'">',
    "rtl": "\u202eשלום עולם",
    "long": "word " * 2_000,
    "formula": '=HYPERLINK("http://127.0.0.1/")',
}


def make_dataset(folder, checkpoint):
    """A dataset of two tars and a folder: 20 pairs with a column, hostile captions, one picture alone, 7 photos."""
    members = [m for i in range(20) for m in pair(f"{i:06d}", i, kind=str(i % 3).encode())]
    members += [("alone.jpg", picture(60, size=(300, 200))), ("broken.jpg", picture(1)[:300]), ("broken.txt", b"torn")]
    write_tar(folder / "a.tar", members)
    write_tar(folder / "b.tar", [m for i, (key, text) in enumerate(HOSTILE.items()) for m in pair(key, 80 + i, text)])
    make_folder(folder / "photos", 7, first=2)  # the same pictures as some of the tar
    (folder / "colors.txt").write_text("red\nblue\nit's green\n")
    inputs = [str(folder / name) for name in ("a.tar", "b.tar", "photos")]
    spec = ClipSpec(checkpoint, precision="fp32")
    reader = ReaderOptions(columns=["kind"])
    embed_shards(inputs, folder / "out", spec, [Taxonomy.load(str(folder / "colors.txt"))], reader=reader)
    return folder


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


def loaded_session(dataset, **arguments):
    """A session whose dataset is loaded; its towers are not."""
    session = Session(plan_browse(dataset, **arguments))
    session.load()
    assert not session.failure
    return session


class Client:
    """Sends requests as the page does; other headers replace these."""

    def __init__(self, session, token="", hosts=frozenset({HOST})):
        self._app = Guard(make_app(session), hosts, token)

    def get(self, path, **headers):
        return self.send("GET", path, None, headers)

    def post(self, path, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, body, {"x_clip_transforms": "browse", **headers})

    def search(self, **question):
        answer = self.post("/api/search", question)
        assert answer.status == 200, answer.body
        return answer.json()

    def send(self, method, path, body, headers):
        path, _, query = path.partition("?")
        given = {"host": HOST, "content_length": str(len(body or b"")), **headers}
        encoded = [(n.replace("_", "-").encode(), v.encode()) for n, v in given.items() if v is not None]
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode()}
        scope |= {"query_string": query.encode(), "headers": encoded, "scheme": "http", "root_path": ""}
        messages = []

        async def receive():
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message):
            messages.append(message)

        asyncio.run(asyncio.wait_for(self._app(scope, receive, send), 60))
        start = messages[0]
        found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], found, b"".join(m.get("body", b"") for m in messages[1:]))
