"""The command: an address, a page behind it, and an end with one sentence."""

import contextlib
import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, make_folder
from forked import Process

from benchmarks.datasets import write_rows
from clip_transforms import embed_shards
from clip_transforms.browsing.plan import plan_browse
from clip_transforms.browsing.serving import Address, ServeError
from pipelines import browse

CLOSED = "the page is closed; the dataset is as it was"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_checkpoint):
    from clip_transforms import ClipSpec

    folder = tmp_path_factory.mktemp("browsed")
    make_folder(folder / "photos", 5)
    embed_shards(folder / "photos", folder / "out", ClipSpec(tiny_checkpoint, precision="fp32"))
    return folder / "out"


@contextlib.contextmanager
def serving(*argv):
    """A running command, and the port of the address that it printed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Process("-m", "pipelines.browse", "--port", "0", *argv, cwd=ROOT, **pipes) as process:
        try:
            printed = [process.stdout.readline() for _ in range(2)]
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/(\?token=\S+)? \(Ctrl-C ends it\)\n", printed[1])
            assert found, (printed, process.poll())
            yield process, int(found[1]), printed
        finally:
            process.kill()


def ask(port, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, {"x-clip-transforms": "browse", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()


def wait(port):
    for _ in range(600):
        state = json.loads(ask(port, "/api/state")[1])
        if state["ready"] and state["words"] != "loading":
            return state
        time.sleep(0.05)
    raise AssertionError(state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_page_is_there_and_a_signal_ends_it_with_one_sentence(dataset, number):
    with serving("--input", dataset) as (process, port, printed):
        assert printed[0] == f"{dataset}: 5 rows\n"
        assert wait(port)["words"] == "ready"
        assert b"<title>Browse</title>" in ask(port, "/")[1]
        answer = json.loads(ask(port, "/api/search", b'{"text": "a cat", "rows": 2}')[1])
        assert len(answer["rows"]) == 2 and answer["total"] == 5
        status, image = ask(port, f"/picture/x/square/{answer['rows'][0]['id']}")
        assert status == 200 and image[8:12] == b"WEBP"
        assert ask(port, "/api/state", host="evil.example")[0] == 421
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.strip()) == (0, "", CLOSED)


def test_the_first_line_says_that_a_selection_narrows_the_page(dataset, tmp_path):
    (tmp_path / "two.txt").write_text("000001.jpg\n000003.jpg\n")
    with serving("--input", dataset, "--selection", tmp_path / "two.txt") as (_, port, printed):
        assert printed[0] == f"{dataset}: 5 rows, narrowed by --selection\n"
        assert wait(port)["rows"] == 2


def test_a_signal_ends_it_while_somebody_waits_for_an_answer(dataset):
    with serving("--input", dataset) as (process, port, _):
        wait(port)
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(b"POST /api/picture HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nx-clip-transforms: browse\r\n" % port)
            half.sendall(b"content-length: 1000\r\n\r\nhalf")
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and CLOSED in err and "Traceback" not in err


def test_a_token_is_part_of_the_address(dataset):
    with serving("--input", dataset, "--token") as (_, port, printed):
        token = re.search(r"token=(\S+)", printed[1])[1]
        assert ask(port, "/")[0] == 401 and ask(port, f"/?token={token}")[0] == 303
        assert len(token) >= 32


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--input is missing"),
        (["--input", "{nothing}"], "is not a dataset"),
        (["out"], "'out' has no flag before it; write --input out to browse it"),
        (["--input", "{out}", "--ouput", "x"], "--ouput is not a flag of this command; did you mean --input?"),
        (["--input", "{out}", "--runner", "FlinkRunner"], "--runner is not a flag of this command"),
        (["--input", "{out}", "--port", "70000"], "--port is 70000, but it must be 1 to 65535, or 0"),
        (["--input", "{out}", "--port", "x"], "--port is 'x', but it must be a whole number"),
        (["--input", "{out}", "--host", "192.0.2.1"], "--host 192.0.2.1 is no address of this machine"),
        (["--input", "{out}", "--host", "no.such.name.invalid"], "--host no.such.name.invalid is no address"),
        (["--input", "{out}", "--against", "caption"], "holds no caption embeddings"),
        (["--input", "{out}", "--index", "{nothing}"], "is no index"),
        (["--input", "{out}", "--selection", "{nothing}"], "does not exist"),
        (["--input", "{out}", "--model", "{nothing}"], "{nothing}"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_starts_nothing(tmp_path, argv, message):
    out = write_rows(tmp_path / "out", [{"image_embedding": [[1.0, 0.0]], "d": 2}])
    names = {"out": out, "nothing": str(tmp_path / "nothing")}
    with pytest.raises(ValueError) as refusal:
        browse.main([word.format(**names) for word in argv])
    assert message.format(**names) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_port_in_use_is_refused_if_it_was_asked_for_and_else_another_is_taken():
    with Address("127.0.0.1", 0, False).socket as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"--port {port} is in use"):
            Address("127.0.0.1", port, False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("clip_transforms.browsing.serving.PORT", port)
            other = Address("127.0.0.1", None, False)
            assert other.socket.getsockname()[1] != port and other.token == ""
            other.socket.close()


def test_an_address_of_other_machines_has_a_token_and_answers_to_any_name():
    address = Address("0.0.0.0", 0, False)
    assert address.hosts is None and len(address.token) >= 32 and f"?token={address.token}" in address.url
    address.socket.close()
    one = Address("127.0.0.1", 0, False)
    port = one.socket.getsockname()[1]
    assert one.hosts == {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
    one.socket.close()


@pytest.mark.parametrize(
    ("terminal", "environment", "opens"),
    [(True, {"DISPLAY": ":0"}, True), (True, {}, False), (False, {"DISPLAY": ":0"}, False)]
    + [(True, {"DISPLAY": ":0", "SSH_CONNECTION": "1 2"}, False), (True, {"WAYLAND_DISPLAY": "w"}, True)],
    ids=["a desktop", "a console", "a pipe", "ssh", "wayland"],
)
def test_a_browser_opens_only_before_the_person_who_asked(tmp_path, monkeypatch, terminal, environment, opens):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    opened = queue.Queue()
    monkeypatch.setattr("webbrowser.open", opened.put)
    plan = plan_browse(write_rows(tmp_path / "out", [{"image_embedding": [[1.0, 0.0]], "d": 2}]))
    with (address := Address("127.0.0.1", 0, False)).socket:
        browse._started(plan, address, False)
        assert opened.empty()
        browse._started(plan, address, True)
        if opens:
            assert opened.get(timeout=10) == address.url
    assert opened.empty()


def test_it_starts_without_beam_and_torch():
    code = "import sys, pipelines.browse; sys.exit('apache_beam' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
