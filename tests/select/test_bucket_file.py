"""Files of buckets, and the rows of blocks in them."""

import numpy as np
import pytest

from clip_transforms.select import block_rows
from clip_transforms.select.block_rows import as_buckets, read_blocks, record_dtype, tasks
from clip_transforms.select.bucket_file import read_bucket, read_bytes, read_ends, read_note, write_buckets


def test_each_bucket_is_read_back_alone(tmp_path):
    buckets = [b"ab", b"", np.arange(3, dtype="<i4"), b""]
    write_buckets(f"{tmp_path}/one", buckets, str(tmp_path), {"rows": 7})
    assert [read_bucket(f"{tmp_path}/one", i) for i in range(4)] == [bytes(memoryview(b)) for b in buckets]
    assert read_ends(f"{tmp_path}/one", 0, 4).tolist() == [0, 2, 2, 14, 14]
    assert read_bytes(f"{tmp_path}/one", 1, 6) == b"b" + np.arange(1, dtype="<i4").tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    assert (read_note(f"{tmp_path}/one"), read_note(f"{tmp_path}/two")) == ({"rows": 7}, None)


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path):
    def failing():
        yield b"ab"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_buckets(f"{tmp_path}/one", failing(), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_off_is_not_read_as_whole(tmp_path):
    write_buckets(f"{tmp_path}/one", [b"abcdef"], str(tmp_path))
    data = (tmp_path / "one").read_bytes()
    (tmp_path / "one").write_bytes(data[:-4])
    with pytest.raises(OSError, match="ends early, after 4 of 6 bytes"):
        read_bucket(f"{tmp_path}/one", 0)


def test_an_object_store_works_like_a_folder(s3):
    write_buckets("s3://bucket/buckets", [b"ab", b"cd"], "s3://bucket/scratch")
    assert read_bucket("s3://bucket/buckets", 1) == b"cd"
    assert (read_note("s3://bucket/buckets"), read_note("s3://bucket/others")) == ({}, None)


def test_blocks_are_cut_into_tasks_of_some_rows(monkeypatch):
    monkeypatch.setattr(block_rows, "PIECE_ROWS", 10)
    assert tasks([4, 6, 1, 25, 0, 3, 10]) == [
        (0, 2, 0),
        (2, 3, 0),
        (3, 4, 0),
        (3, 4, 1),
        (3, 4, 2),
        (4, 6, 0),
        (6, 7, 0),
    ]
    assert tasks([]) == tasks([0, 0]) == []


@pytest.mark.parametrize("files", [1, 3])
def test_a_task_reads_its_blocks_from_every_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(block_rows, "PIECE_ROWS", 7)
    rng, dtype, uris, expected = np.random.default_rng(0), record_dtype(np.dtype(("f4", (2, 3)))), [], {}
    for number in range(files):
        ids, values = np.arange(30) + 100 * number, rng.normal(size=(30, 2, 3)).astype("f4")
        row, block = np.repeat(np.arange(30), 2), rng.integers(0, 4, 60)  # each row goes to two blocks, or twice to one
        given = row, block, np.zeros(60), np.ones(60, bool)  # with equal scores, rows keep the order of their ids
        uris.append(f"{tmp_path}/{number}")
        write_buckets(uris[-1], as_buckets(ids, values, given, 4, dtype), str(tmp_path))
        for one, place in zip(row, block, strict=True):
            expected.setdefault(int(place), []).append((int(ids[one]), values[one].tolist()))

    def read(first, stop, piece):
        return [
            [list(zip(r.ids.tolist(), r.values.tolist(), strict=True)) for r in pieces]
            for pieces in read_blocks(uris, first, stop, piece, dtype)
        ]

    assert [pieces[0] for pieces in read(0, 4, 0)] == [expected[block] for block in range(4)]
    for block in range(4):
        for piece in range(0, -(-len(expected[block]) // 7)):
            (pieces,) = read(block, block + 1, piece)
            assert [row for rows in pieces for row in rows] == expected[block][7 * piece :]
            assert all(len(rows) == 7 for rows in pieces[:-1])
