"""How far the images of a listing are fetched ahead: so many rows, and so many bytes of pictures in the text itself."""

import base64

import pytest
from conftest import picture

from clip_transforms.shards import fetch_ahead
from clip_transforms.shards.fence import Fence
from clip_transforms.shards.unit import ReaderOptions

DATA = picture(0)
URI = "data:image/jpeg;base64," + base64.b64encode(DATA).decode()


@pytest.mark.parametrize("room, ahead", [(1, 1), (2 * len(URI), 2), (2 * len(URI) + 1, 3), (1 << 30, 5)])
def test_rows_are_taken_ahead_within_the_bytes_of_their_uris(room, ahead, monkeypatch):
    monkeypatch.setattr(fetch_ahead, "_AHEAD_BYTES", room)
    monkeypatch.setattr(fetch_ahead, "_AHEAD", 5)
    taken = []

    def rows():
        for i in range(12):
            taken.append(i)
            yield i, URI

    found = []
    for place, (item, fields) in enumerate(fetch_ahead.fetch_in_order(rows(), Fence("/nowhere", ()), ReaderOptions())):
        found.append((item, fields["image"]))
        assert len(taken) == min(12, place + ahead), "a row that was handed over makes room for another"
    assert found == [(i, DATA) for i in range(12)]
