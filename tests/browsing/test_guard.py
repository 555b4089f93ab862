"""Who is answered, and what a browser may do with the answer."""

import json

import pytest
from browse_client import Client, make_dataset

from clip_transforms.browsing.guard import HEADERS, Guard
from clip_transforms.browsing.plan import plan_browse
from clip_transforms.browsing.session import Session

QUESTION = b'{"rows": 1}'


@pytest.fixture(scope="module")
def session(tmp_path_factory, tiny_checkpoint):
    """A session whose dataset is not loaded yet: nothing here needs it."""
    made = make_dataset(tmp_path_factory.mktemp("made"), tiny_checkpoint)
    session = Session(plan_browse(made / "out"))
    yield session
    session.close()


@pytest.fixture
def client(session):
    return Client(session)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:8642", "origin": "http://127.0.0.1:8642", "sec_fetch_site": "same-origin"}, 200),
        ({"host": "evil.example:8642"}, 421),  # a name that was made to mean this machine
        ({"host": "127.0.0.1"}, 421),
        ({"host": "127.0.0.1:8642.evil.example"}, 421),
        ({"host": None}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),  # another server of this machine
        ({"origin": "null"}, 403),  # a sandboxed frame, a file
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"x_clip_transforms": None}, 403),  # a form of HTML
    ],
)
def test_only_the_own_page_may_post(client, headers, status):
    answer = client.post("/api/search", QUESTION, **headers)
    assert answer.status == (400 if status == 200 else status), answer.body  # 400: the dataset is not loaded yet
    if status == 200:
        assert "still being read" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/api/state", "/picture/x/square/0", "/browse.js"])
def test_another_site_can_neither_read_nor_embed(client, path):
    for headers in ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, {"host": "evil.example"}):
        assert client.get(path, **headers).status in (403, 421)
    assert client.get(path, sec_fetch_site="same-origin").status in (200, 400)


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(client):
    headers = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert client.get("/", **headers).status == 200
    assert client.get("/api/state", **headers).status == 403
    assert client.get("/", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403


@pytest.mark.parametrize("path", ["/", "/browse.js", "/api/state", "/nothing", "/picture/x/square/abc"])
def test_every_answer_forbids_what_the_page_does_not_need(client, path):
    answer = client.get(path)
    assert HEADERS.items() <= answer.headers.items()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'" and not any("http" in value for value in policy.values())


def test_refusals_carry_the_headers_too_and_repeat_nothing_of_the_request(client):
    answer = client.get("/api/state", host="<script>alert(1)</script>")
    assert answer.status == 421 and b"script" not in answer.body and HEADERS.items() <= answer.headers.items()


def test_on_all_addresses_a_token_is_needed(session):
    client = Client(session, token="secret", hosts=None)
    for path in (
        "/",
        "/api/state",
        "/browse.js",
        "/picture/x/square/0",
        "/?token=secret2",
        "/?token=",
        "/api/state?token=secret",
    ):
        answer = client.get(path, host="192.168.1.7:8642")
        assert (answer.status, answer.body) == (
            401,
            b"open the whole address that the command printed, with its token\n",
        )
    opened = client.get("/?token=secret", host="192.168.1.7:8642")
    assert (opened.status, opened.headers["location"]) == (303, "/")  # so the token leaves the address line
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite" in cookie
    given = cookie.split(";")[0]
    assert client.get("/api/state", host="a-name:8642", cookie=given).status == 200
    for wrong in (given[:-1], given + "x", "", "=;;=", "clip_transforms_browse_0=\xe9"):
        assert client.get("/api/state", host="a-name:8642", cookie=wrong).status == 401


def test_a_guard_of_all_names_needs_a_token(session):
    with pytest.raises(AssertionError):
        Guard(None, None)


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/_dataset.json", "/picture/x/square/../../0", "/static/browse.py", "/_dataset.json"]
)
def test_no_path_of_a_request_becomes_a_path_of_a_file(client, path):
    assert client.get(path).status == 404


def test_an_upload_is_not_read_beyond_its_limit(session, client, monkeypatch):
    most = session.plan.reader.max_image_bytes
    for length in (str(most + 1), "-1", "many"):
        answer = client.post("/api/picture", b"x", content_length=length)
        assert answer.status == 413 and "67,108,864 bytes" in answer.json()["error"]
    reader = type(session.plan.reader)(max_image_bytes=10)
    object.__setattr__(session.plan, "reader", reader)
    assert client.post("/api/picture", b"x" * 11, content_length=None).status == 413  # chunked: no length is told
    object.__setattr__(session.plan, "reader", type(reader)(max_image_bytes=most))


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", json.dumps({"text": "x" * (2 << 20)}).encode()])
def test_a_body_that_is_no_question_is_refused(client, body):
    answer = client.post("/api/search", body)
    assert answer.status in (400, 413) and answer.json()["error"]


def test_a_full_line_is_not_joined(client, session, monkeypatch):
    monkeypatch.setattr("clip_transforms.browsing.app._UPLOADS", 0)
    answer = Client(session).post("/api/picture", b"x")
    assert answer.status == 400 and "at once" in answer.json()["error"]
