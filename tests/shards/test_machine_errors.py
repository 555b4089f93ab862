"""When this machine runs out of something while it reads, the run ends; when the data is at fault, it is a reject."""

import errno
import gzip
import io
import resource
import threading
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, picture, rows_of
from reading import read, write_side_files

from clip_transforms import storage
from clip_transforms.shards import fetch, parquet_values
from clip_transforms.shards.fence import Fence
from clip_transforms.shards.inventory import PlanError, take_inventory
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions, ShardError

MACHINE = {
    "memory": lambda: MemoryError(),
    "memory of Arrow": lambda: pa.ArrowMemoryError("malloc of size 64 failed"),
    "descriptors": lambda: OSError(errno.EMFILE, "Too many open files"),
    "descriptors of the system": lambda: OSError(errno.ENFILE, "Too many open files in system"),
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "threads": lambda: RuntimeError("can't start new thread"),
}
DATA = {
    "bad sector": lambda: OSError(errno.EIO, "Input/output error"),
    "forbidden": lambda: PermissionError(errno.EACCES, "Permission denied"),
}


class Failing(io.BytesIO):
    """A file whose bytes at some places cannot be read."""

    def __init__(self, data, places, error):
        super().__init__(data)
        self.places, self.error = places, error

    def read(self, size=-1):
        if self.tell() in self.places:
            raise self.error()
        return super().read(size)


@pytest.fixture
def fail(monkeypatch):
    """Let `storage.open_input` give files with a suffix that fail at some places."""
    original = storage.open_input

    def install(suffix, error, places=range(1 << 40)):
        def opened(uri):
            with original(uri) as file:
                return Failing(file.read(), places, error) if uri.endswith(suffix) else original(uri)

        monkeypatch.setattr(storage, "open_input", opened)

    return install


def units_of(path, tmp_path, options=None):
    inventory = take_inventory([str(path)], options or ReaderOptions())
    write_side_files(inventory, tmp_path)
    return inventory.units


def rows_and_notes(units, tmp_path, options=None):
    rows, notes = [], Counter()
    for unit in units:
        for batch in read_unit(unit, options or ReaderOptions(), 3, notes, str(tmp_path)):
            rows += batch.to_pylist()
    return rows, notes


def gzipped(path):
    make_tar(path, 4)
    path.write_bytes(gzip.compress(path.read_bytes(), 0))


SHARDS = {
    "tar": (lambda path: make_tar(path / "a.tar", 4), range(10_000)),
    "tar, in its middle": (lambda path: make_tar(path / "a.tar", 30), range(1, 1 << 20)),
    "gzipped tar": (lambda path: gzipped(path / "a.tar"), range(1, 1 << 20)),
    "Parquet": (lambda path: make_parquet(path / "a.parquet", 9), range(1 << 20)),
    "Parquet, in a row group": (lambda path: make_parquet(path / "a.parquet", 300), range(100)),
}


@pytest.mark.parametrize("error", [*MACHINE, *DATA])
@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_that_cannot_be_read(kind, error, fail, tmp_path):
    (tmp_path / "in").mkdir()
    make, places = SHARDS[kind]
    make(tmp_path / "in")
    units = units_of(tmp_path / "in", tmp_path)
    raised = {**MACHINE, **DATA}[error]
    fail((".tar", ".parquet"), raised, places)
    with pytest.raises(type(raised()) if error in MACHINE else ShardError) as caught:
        rows_and_notes(units, tmp_path)
    if error in DATA:
        assert caught.value.reason == "unreadable" and raised().strerror in str(caught.value)


@pytest.mark.parametrize("error", [*MACHINE, *DATA])
@pytest.mark.parametrize("suffix", [".jpg", ".txt", ".json"])
def test_a_file_of_a_folder_that_cannot_be_read(suffix, error, fail, tmp_path):
    make_folder(tmp_path / "in", 2)
    (tmp_path / "in" / "000000.json").write_text("{}")
    units = units_of(tmp_path / "in", tmp_path)
    fail(suffix, {**MACHINE, **DATA}[error])
    if error in MACHINE:
        with pytest.raises(type(MACHINE[error]())):
            rows_and_notes(units, tmp_path)
        return
    rows, notes = rows_and_notes(units, tmp_path)
    assert len(rows) == 2
    if suffix == ".json":
        assert notes == {"JSON files that could not be read": 1}
    else:
        reject = rows[0]["image_reject" if suffix == ".jpg" else "caption_reject"]
        assert reject["reason"] == "unreadable" and DATA[error]().strerror in reject["message"]


def test_real_descriptors_that_run_out_are_no_rejects(tmp_path):
    make_folder(tmp_path / "in", 2)
    units = units_of(tmp_path / "in", tmp_path)
    (rows, _), table = rows_and_notes(units, tmp_path), pq.read_table(tmp_path / units[0].uri)
    assert [row["image_reject"] for row in rows] == [None, None] and table.num_rows == 2
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    batches = read_unit(units[0], ReaderOptions(), 1, Counter(), str(tmp_path))
    assert next(batches).num_rows == 1
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(OSError) as caught:
            next(batches)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("error", [*MACHINE, *DATA])
def test_an_image_of_a_listing_that_cannot_be_read(error, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "l.csv").write_text("uri\na.jpg\na.jpg\n")

    def failing(*_):
        raise {**MACHINE, **DATA}[error]()

    monkeypatch.setattr(fetch, "_read_local", failing)
    if error in MACHINE:
        with pytest.raises(type(MACHINE[error]())):
            read(tmp_path / "l.csv", tmp_path)
    else:
        rows, _, _ = read(tmp_path / "l.csv", tmp_path)
        assert [row["image_reject"]["reason"] for row in rows] == ["not fetched"] * 2


@pytest.mark.parametrize("error, tries", [("descriptors", 1), ("bad sector", 2)])
def test_no_second_address_hides_that_the_machine_has_no_descriptors(error, tries, monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise {**MACHINE, **DATA}[error]() if len(asked) == 1 else ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(fetch.socket, "create_connection", connect)
    monkeypatch.setattr(Fence, "addresses", lambda self, host, port: ["192.0.2.1", "192.0.2.2"])
    monkeypatch.setattr(fetch, "_TRIES", 1)
    fence = Fence("http://pictures.example")
    if error in MACHINE:
        with pytest.raises(OSError, match="Too many open files"):
            fetch.fetch_image("a.jpg", fence, 100, threading.Event())
    else:
        assert "refused" in fetch.fetch_image("a.jpg", fence, 100, threading.Event())["image_reject"]["message"]
    assert len(asked) == tries


LISTINGS = {
    "l.csv": b"caption\n" + b"a cat\n" * 10,
    "l.tsv": b"caption\tn\n" + b"a cat\t1\n" * 10,
    "l.jsonl": b'{"caption": "a cat"}\n' * 10,
}


@pytest.mark.parametrize("error", [*MACHINE, *DATA])
@pytest.mark.parametrize("name", [*LISTINGS, "l.parquet"])
def test_a_listing_that_cannot_be_read_while_it_is_cut(name, error, fail, tmp_path):
    if name == "l.parquet":
        pq.write_table(pa.table({"caption": [f"cat number {i}" for i in range(20_000)]}), tmp_path / name)
        places = range(60)  # its footer is read in one piece with the 64 KiB before it
    else:
        (tmp_path / name).write_bytes(LISTINGS[name])
        places = range(1, 1 << 20)  # the header is read in one piece with the rest
    fail(name, {**MACHINE, **DATA}[error], places)
    if error in MACHINE:
        with pytest.raises(type(MACHINE[error]())):
            read(tmp_path / name, tmp_path)
    else:
        rows, _, errors = read(tmp_path / name, tmp_path)
        assert errors[0][0] == "unreadable" and DATA[error]().strerror in errors[0][1]


@pytest.mark.parametrize("error", [*MACHINE, *DATA])
@pytest.mark.parametrize("name", ["l.csv", "a.parquet"])
def test_a_header_or_a_footer_that_cannot_be_read(name, error, fail, tmp_path):
    make_parquet(tmp_path / "a.parquet", 2)
    (tmp_path / "l.csv").write_text("caption\na cat\n")
    fail(name, {**MACHINE, **DATA}[error])
    with pytest.raises(type(MACHINE[error]()) if error in MACHINE else PlanError) as caught:
        take_inventory([str(tmp_path / name)], ReaderOptions())
    assert error in MACHINE or "mend it or leave it out of --input" in str(caught.value)


@pytest.mark.parametrize("error", [*MACHINE, *DATA])
def test_a_file_of_inputs_that_cannot_be_read(error, tmp_path, monkeypatch):
    def failing(uri):
        raise {**MACHINE, **DATA}[error]()

    monkeypatch.setattr(storage, "read_bytes", failing)
    with pytest.raises(type(MACHINE[error]()) if error in MACHINE else PlanError):
        take_inventory([f"@{tmp_path}/list.txt"], ReaderOptions())


class NoMemory:
    """A column that there is no memory to convert."""

    type = pa.date32()

    def cast(self, type_):
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    def to_pylist(self):
        raise pa.ArrowMemoryError("malloc of size 64 failed")


CONVERSIONS = {
    "cast": lambda array, notes: parquet_values.cast_column(array, pa.int8(), notes).to_pylist(),
    "text of a date": parquet_values.python_values,
    "values": lambda array, notes: parquet_values.values_of(array, lambda scalar, error: None),
}


@pytest.mark.parametrize("how", CONVERSIONS)
def test_values_that_there_is_no_memory_for_are_not_null(how):
    notes = Counter()
    with pytest.raises(MemoryError):
        CONVERSIONS[how](NoMemory(), notes)
    assert not notes
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"1", b"\xff"]).buffers())
    assert CONVERSIONS[how](broken, notes) == [1 if how == "cast" else "1", None]
    assert notes["values that could not be cast"] == (how != "values")


@pytest.mark.parametrize("error", ["descriptors", "memory", "bad sector"])
def test_a_run_ends_where_the_machine_fails_and_goes_on_where_the_data_does(error, fail, embed, tmp_path, capfd):
    make_folder(tmp_path / "in", 3)
    fail("000001.jpg", {**MACHINE, **DATA}[error])
    code = embed(tmp_path / "in", output=tmp_path / "out", flags=["--max_reject_fraction", "1"], code=None)
    if error in DATA:
        assert code == 0 and [row["reason"] for row in rows_of(tmp_path / "out", "rejects")] == ["unreadable"]
    else:
        assert code == 1 and rows_of(tmp_path / "out", "rejects") == []
        assert "the run failed: " in capfd.readouterr().err
