"""Times in the answers of S3 are those that botocore reads."""

import datetime

import pytest

from clip_transforms import storage
from clip_transforms.storage.s3_times import _time

TIMES = [
    *("2026-01-31T23:59:59.000Z", "2026-01-31T23:59:59.123Z", "2026-01-31T23:59:59Z"),
    *("Sat, 31 Jan 2026 23:59:59 GMT", "2026-01-31T23:59:59+01:00", "2026-01-31T23:59:59.1234567Z", 1769903999, 0.5),
]


@pytest.mark.parametrize("text", TIMES)
def test_a_time_is_what_botocore_reads(text):
    utils = pytest.importorskip("botocore.utils")
    assert _time(text) == utils.parse_timestamp(text)


def test_what_is_no_time_is_refused_as_botocore_does():
    utils = pytest.importorskip("botocore.utils")
    for text in ("2026-13-01T00:00:00Z", "2026-01-31Tand no timeZ", "today"):
        for read in (utils.parse_timestamp, _time):
            with pytest.raises(ValueError):
                read(text)


def test_a_listing_of_s3_is_read_this_way(s3):
    s3.fs.pipe_file("bucket/a/b", b"x")
    fs, path = storage.filesystem("s3://bucket/a")
    (entry,) = fs.ls(path, detail=True)
    assert entry["name"] == "bucket/a/b" and entry["LastModified"].tzinfo is datetime.timezone.utc, "botocore: tzutc()"
