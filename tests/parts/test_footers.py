"""A footer found by its key alone is what pyarrow reads, and no other file is taken for one of ours."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_transforms import storage
from clip_transforms.parts import footers
from clip_transforms.parts.footers import read_digests, read_footer, read_footers
from schemas.provenance import FOOTER_KEY, encode_footer

FOOTER = {"fingerprint": "f", "shard": "ü/a.tar", "digest": "d", "counts": {"samples": 3}, "provenance": {"d": 1}}
TRAP = b"\x18\x04clip\x18\x02{}".decode("latin-1")  # as the entry itself begins, in a column's statistics


def write(path, footer=None, rows=3, groups=1, name="caption", **kwargs):
    table = pa.table({name: [TRAP + str(i) for i in range(rows)], "n": list(range(rows))})
    with pq.ParquetWriter(path, table.schema, **kwargs) as writer:
        for _ in range(groups):
            writer.write_table(table)
        if footer is not None:
            writer.add_key_value_metadata(encode_footer(footer))
    return str(path)


CASES = {
    "small": {},
    "traps in statistics and names": {"name": TRAP},
    "footer longer than the tail": {"groups": 300},
    "no rows": {"rows": 0, "groups": 0},
    "another format version": {"version": "1.0"},
    "a long value": {"footer": {**FOOTER, "counts": {f"note.{i}": i for i in range(20_000)}}},
    "without our key": {"footer": None},
}


@pytest.mark.parametrize("name", CASES)
def test_the_footer_is_what_pyarrow_reads(name, tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", **{"footer": FOOTER, **CASES[name]})
    found = (pq.read_metadata(path).metadata or {}).get(FOOTER_KEY)
    assert read_footer(path) == (json.loads(found) if found else None)
    if found:  # and pyarrow was not asked
        monkeypatch.setattr(footers.pq, "read_metadata", None)
        assert read_footer(path)["shard"] == "ü/a.tar"


def test_our_key_from_another_writer_is_read_too(tmp_path):
    polars = pytest.importorskip("polars")
    path = str(tmp_path / "a.parquet")
    polars.DataFrame({"a": [1]}).write_parquet(path, metadata={"clip": json.dumps(FOOTER)})
    assert read_footer(path) == FOOTER


def test_a_file_cut_off_anywhere_or_altered_at_its_end_is_none(tmp_path):
    whole = open(write(tmp_path / "a.parquet", FOOTER), "rb").read()
    path = tmp_path / "b.parquet"
    for cut in [0, 1, 4, 7, 8, 11, 12, *range(13, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert read_footer(str(path)) is None, cut
    for data in (whole[:-8] + b"\xff\xff\xff\x7fPAR1", whole[:-8] + bytes(4) + b"PAR1", b"PAR1", b"\0\0\0\0PAR1"):
        path.write_bytes(data)
        assert read_footer(str(path)) is None


@pytest.mark.parametrize("value", ["", "no JSON", "[1]", '{"other": 1}', "\udcff"], ids=repr)
def test_a_value_that_is_no_footer_is_none(value, tmp_path):
    table = pa.table({"a": [1]}).replace_schema_metadata({b"clip": value.encode("utf-8", "surrogateescape")})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_footer(str(tmp_path / "a.parquet")) is None


def test_a_folder_or_nothing_is_none_and_storage_that_fails_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").mkdir()
    assert read_footer(str(tmp_path / "a.parquet")) is None and read_footer(str(tmp_path / "b.parquet")) is None

    def forbidden(uri, size):
        raise PermissionError(13, "Permission denied", uri)

    monkeypatch.setattr(storage, "read_end", forbidden)
    with pytest.raises(PermissionError):  # not: this unit was never committed
        read_footer(str(tmp_path / "b.parquet"))


def test_many_footers_share_what_they_have_in_common(tmp_path):
    (tmp_path / "embeddings").mkdir()
    names = [f"p{i}" for i in range(200)]
    for i, name in enumerate(names):
        provenance = {"device": "cpu" if i % 2 else "cuda"}
        write(tmp_path / "embeddings" / f"{name}.parquet", {**FOOTER, "digest": name, "provenance": provenance})
    (tmp_path / "embeddings" / "p7.parquet").write_bytes(b"?")
    footers = read_footers(str(tmp_path), "embeddings", names)
    assert set(footers) == set(names) - {"p7"} and footers["p9"] == read_footer(f"{tmp_path}/embeddings/p9.parquet")
    assert len({id(footer["provenance"]) for footer in footers.values()}) == 2
    digests = read_digests(str(tmp_path), "embeddings", names)
    assert digests == {name: name for name in names if name != "p7"}


ENTRY = '"provenance": {"d": 1}'
TEXTS = {
    "as we write it": json.dumps(FOOTER, sort_keys=True),
    "the same again": json.dumps({**FOOTER, "digest": "e"}, sort_keys=True),
    "keys in another order": json.dumps({**FOOTER, "provenance": {"e": 2, "d": 1}}),
    "a longer provenance": json.dumps({**FOOTER, "provenance": {"d": 1, "e": 2}}, sort_keys=True),
    "a number that begins alike": json.dumps({**FOOTER, "provenance": 1}),
    "a longer number": json.dumps({**FOOTER, "provenance": 12}),
    "nothing": json.dumps({**FOOTER, "provenance": {}}),
    "no provenance": json.dumps({"fingerprint": "f", "shard": "a.tar"}),
    "in a name": json.dumps({**FOOTER, "shard": ENTRY, "counts": {ENTRY: 1}, "provenance": {"e": 3}}, sort_keys=True),
    "in an object": json.dumps({"fingerprint": "f", "counts": json.loads(f"{{{ENTRY}}}"), "provenance": {"e": 3}}),
    "cut off behind it": json.dumps(FOOTER, sort_keys=True).partition(ENTRY)[0] + ENTRY,
    "a list": f"[{{{ENTRY}}}]",
}


@pytest.mark.parametrize("first", TEXTS)
def test_many_footers_are_read_as_each_alone(first, tmp_path):
    (tmp_path / "embeddings").mkdir()
    for name, text in TEXTS.items():
        table = pa.table({"a": [1]}).replace_schema_metadata({b"clip": text.encode()})
        pq.write_table(table, tmp_path / "embeddings" / f"{name}.parquet")
    names = [first, *TEXTS, *TEXTS]
    alone = {name: read_footer(f"{tmp_path}/embeddings/{name}.parquet") for name in names}
    assert [name for name in TEXTS if alone[name] is None] == ["cut off behind it", "a list"]
    digests = {name: footer.get("digest") for name, footer in alone.items() if footer}
    assert read_digests(str(tmp_path), "embeddings", names) == digests
    whole = {name: {"provenance": {}, "counts": {}} | footer for name, footer in alone.items() if footer}
    assert read_footers(str(tmp_path), "embeddings", names) == whole
