"""Retrieval: captions of images, and images of captions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluated import table, unit, with_one_thread  # noqa: F401

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, evaluate_embeddings, filter_embeddings
from schemas.captions import captions_schema

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam", "one_thread")


def clip_benchmark_recall(queries, candidates, positives, k):
    best = torch.topk(torch.from_numpy(queries @ candidates.T), k, dim=1)[1]
    return (torch.from_numpy(positives).gather(1, best).sum(1) > 0).float().mean().item()


def test_captions_and_images_find_each_other_as_in_clip_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_transforms.run.retrieval_steps._QUERIES", 7)
    monkeypatch.setattr("clip_transforms.run.retrieval_steps._CANDIDATES", 9)
    monkeypatch.setattr("clip_transforms.run.evaluate_steps.RUN_ROWS", 20)
    rng = np.random.default_rng(2)
    images = unit(rng, 50, 8)
    captions = images + 0.9 * unit(rng, 50, 8)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    of = {"image_embedding": images.tolist(), "caption_embedding": captions.tolist()}
    of["image_embedding"][3] = of["caption_embedding"][31] = None
    parts = [{name: values[i : i + 10] for name, values in of.items()} | {"d": 8} for i in range(0, 50, 10)]
    found = evaluate_embeddings(write_rows(tmp_path / "out", parts), tmp_path / "e")["retrieval"]
    assert found["rows"] == {
        "seen": 50,
        "not_selected": 0,
        "images": 49,
        "captions": 49,
        "without_caption": 1,
        "without_image": 1,
    }
    has_image, has_caption = np.arange(50) != 3, np.arange(50) != 31
    for direction, queries, candidates, others in (
        ("image_to_caption", images, captions, has_caption),
        ("caption_to_image", captions, images, has_image),
    ):
        asked, offered = np.flatnonzero(has_image & has_caption), np.flatnonzero(others)
        assert found[direction]["n"] == 48 and found[direction]["candidates"] == 49
        positives = asked[:, None] == offered[None]
        for k in (1, 5, 10):
            expected = clip_benchmark_recall(queries[asked], candidates[offered], positives, k)
            assert found[direction][f"recall@{k}"] == pytest.approx(expected, abs=1e-6)


def write_captions(out, part, number, rows, vectors, d):
    """The file of all captions of a part, as `embed --captions all` writes it."""
    footer = pq.ParquetFile(Path(out) / "embeddings" / f"{part}.parquet").metadata.metadata
    n = len(rows)
    shard = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n), pa.int32()), [f"/shards/{number}.tar"])
    index = [rows[:i].count(row) for i, row in enumerate(rows)]
    columns = [
        [f"{r:06d}" for r in rows],
        shard,
        rows,
        index,
        ["x"] * n,
        [3] * n,
        [False] * n,
        vectors.tolist(),
        [0.1] * n,
    ]
    schema = captions_schema()
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    (Path(out) / "captions").mkdir(exist_ok=True)
    with pq.ParquetWriter(Path(out) / "captions" / f"{part}.parquet", schema) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({b"clip": footer[b"clip"]})


def test_any_of_several_captions_of_an_image_is_a_hit(tmp_path):
    rng = np.random.default_rng(3)
    images, owners = unit(rng, 24, 6), np.sort(rng.integers(0, 23, 80))  # the last image has no caption
    texts = images[owners] + 1.2 * unit(rng, 80, 6)
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    groups = ["a", "b", None] * 8
    parts = [{"image_embedding": images[i : i + 12], "who": groups[i : i + 12]} for i in (0, 12)]
    out = write_rows(tmp_path / "out", parts, columns=["who"])
    for number, part in enumerate(Dataset.open(out).parts):
        own = (owners >= 12 * number) & (owners < 12 * number + 12)
        write_captions(out, part, number, (owners[own] - 12 * number).tolist(), texts[own], 6)
    found = evaluate_embeddings(out, tmp_path / "e", measure="retrieval", group_column="who")["retrieval"]
    with_caption = np.unique(owners)
    assert found["rows"]["without_caption"] == 24 - len(with_caption) and found["rows"]["captions"] == 80
    positives = owners[:, None] == np.arange(24)
    for k in (1, 5, 10):
        to_image = clip_benchmark_recall(texts, images, positives, k)
        to_caption = clip_benchmark_recall(images[with_caption], texts, positives.T[with_caption], k)
        assert found["caption_to_image"][f"recall@{k}"] == pytest.approx(to_image, abs=1e-6)
        assert found["image_to_caption"][f"recall@{k}"] == pytest.approx(to_caption, abs=1e-6)
    by_group = {row["group"]: row["n"] for row in table(tmp_path / "e", "group", metric="caption_to_image recall@1")}
    assert by_group == {name: sum(groups[owner] == name for owner in owners) for name in ("a", "b")}
    selected = filter_embeddings(out, tmp_path / "s", where="who = 'a'") and tmp_path / "s"
    found = evaluate_embeddings(out, tmp_path / "a", measure="retrieval", selection=selected)["retrieval"]
    assert found["caption_to_image"]["n"] == by_group["a"] and found["image_to_caption"]["candidates"] == by_group["a"]
    assert found["caption_to_image"]["candidates"] == 8 and found["rows"]["not_selected"] == 16
