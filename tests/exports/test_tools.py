"""Other people's tools read what is exported, unchanged."""

import importlib.metadata
import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture, rows_of, write_tar

from clip_transforms import export_embeddings

UIDS = [f"{(i * 0x9E3779B97F4A7C15F39CC0605CEDC835 + 7) % (1 << 128):032x}" for i in range(44)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_checkpoint, request):
    """44 samples in 11 tars; one lacks its picture, one its caption, and each has a uid in its JSON."""
    from clip_transforms import ClipSpec, Taxonomy, embed_shards

    folder = tmp_path_factory.mktemp("tools")
    for tar in range(11):
        members = []
        for i in range(4 * tar, 4 * tar + 4):
            members += [] if i == 13 else [(f"{i:09d}.jpg", picture(i))]
            members += [] if i == 27 else [(f"{i:09d}.txt", f"picture number {i}".encode())]
            members += [(f"{i:09d}.json", json.dumps({"uid": UIDS[i], "url": f"https://x.org/{i}"}).encode())]
        write_tar(folder / f"{tar:05d}.tar", members)
    (folder / "animals.txt").write_text("cat\ndog\n")
    taxonomy = Taxonomy.load(str(folder / "animals.txt"))
    embed_shards(str(folder / "*.tar"), folder / "out", ClipSpec(tiny_checkpoint, precision="fp32"), taxonomy)
    return folder / "out"


def vectors_of(dataset, modality):
    rows = rows_of(dataset)
    both = [row for row in rows if row["image_embedding"] and row["caption_embedding"]]
    return both, np.array([row[f"{modality}_embedding"] for row in both], np.float32)


@pytest.fixture
def clip_retrieval(dataset, tmp_path, monkeypatch):
    """The layout of clip-retrieval in eleven files, so that the order of their names matters."""
    from clip_transforms.exports import clip_retrieval

    monkeypatch.setattr(clip_retrieval, "ROWS_PER_FILE", 1)
    export_embeddings(dataset, tmp_path / "cr", "clip_retrieval")
    return tmp_path / "cr"


def test_embedding_reader_reads_vectors_beside_their_metadata(dataset, clip_retrieval):
    reader_class = pytest.importorskip("embedding_reader").EmbeddingReader
    for folder, modality in (("img_emb", "image"), ("text_emb", "caption")):
        reader = reader_class(
            embeddings_folder=str(clip_retrieval / folder),
            metadata_folder=str(clip_retrieval / "metadata"),
            meta_columns=["image_path", "caption", "row", "animals.label"],
            file_format="parquet_npy",
        )
        found = [(vectors.copy(), meta) for vectors, meta in reader(batch_size=7, show_progress=False)]
        rows, expected = vectors_of(dataset, modality)
        assert (reader.count, reader.dimension) == (42, 48)
        np.testing.assert_array_equal(np.concatenate([v for v, _ in found]), expected.astype(np.float16))
        keys = [key for _, meta in found for key in meta["image_path"]]
        captions = [caption for _, meta in found for caption in meta["caption"]]
        assert (keys, captions) == ([row["key"] for row in rows], [row["caption"] for row in rows])


@pytest.fixture
def numpy_1(monkeypatch):
    """autofaiss asks for NumPy 1, where the metrics that it writes as JSON were Python's numbers."""
    monkeypatch.setattr(json.JSONEncoder, "default", lambda encoder, value: float(value))


def test_autofaiss_builds_an_index_over_them(dataset, clip_retrieval, tmp_path, numpy_1):
    autofaiss, faiss = pytest.importorskip("autofaiss"), pytest.importorskip("faiss")
    index, _ = autofaiss.build_index(
        embeddings=str(clip_retrieval / "img_emb"),
        index_path=str(tmp_path / "knn.index"),
        index_infos_path=str(tmp_path / "infos.json"),
        max_index_memory_usage="1G",
        current_memory_available="2G",
        nb_cores=1,
        verbose=30,
    )
    _, vectors = vectors_of(dataset, "image")
    assert index.ntotal == 42
    stored = faiss.read_index(str(tmp_path / "knn.index"))
    _, nearest = stored.search(vectors, 1)
    assert nearest[:, 0].tolist() == list(range(42))


def test_clip_retrieval_index_takes_the_folder(clip_retrieval, tmp_path, numpy_1):
    """The command's own function, loaded by its path: the package's import needs torchvision."""
    faiss = pytest.importorskip("faiss")
    pytest.importorskip("autofaiss")
    try:
        files = importlib.metadata.files("clip_retrieval")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip_retrieval is not installed")
    path = next(file.locate() for file in files if file.name == "clip_index.py")
    spec = importlib.util.spec_from_file_location("clip_index", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.clip_index(str(clip_retrieval), str(tmp_path / "index"), "1G", "2G", nb_cores=1)
    assert [faiss.read_index(str(tmp_path / "index" / f"{n}.index")).ntotal for n in ("image", "text")] == [42, 42]
    assert len(list((tmp_path / "index" / "metadata").glob("*.parquet"))) == 11


@pytest.mark.parametrize("embedding_dtype", ["float32", "float16"])
def test_faiss_reads_the_index_and_its_ids_name_the_rows(embedding_dtype, dataset, tmp_path, embed):
    faiss = pytest.importorskip("faiss")
    if embedding_dtype == "float16":
        out = tmp_path / "out"
        embed(dataset.parent / "*.tar", output=out, flags=["--embedding_dtype", "float16"])
        dataset = out
    made = export_embeddings(dataset, tmp_path / "f", "faiss")
    assert made["counts"] == {
        "selected": 44, "exported": 43, "left_out": {"without image embedding": 1}, "files": 1
    }  # fmt: skip
    index = faiss.read_index(str(tmp_path / "f" / "faiss" / "image.index"))
    rows = pq.read_table(tmp_path / "f" / "faiss" / "rows.parquet").to_pylist()
    known = {(row["shard"], row["row"]): row for row in rows_of(dataset)}
    vectors = np.array([known[row["shard"], row["row"]]["image_embedding"] for row in rows], np.float32)
    assert (index.ntotal, index.d, index.metric_type) == (43, 48, faiss.METRIC_INNER_PRODUCT)
    scores, nearest = index.search(vectors, 2)
    assert nearest[:, 0].tolist() == list(range(43))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-2 if embedding_dtype == "float16" else 1e-6)


def test_lance_and_lancedb_open_the_table(dataset, tmp_path):
    lance, lancedb = pytest.importorskip("lance"), pytest.importorskip("lancedb")
    assert export_embeddings(dataset, tmp_path / "l", "lance")["counts"]["exported"] == 44
    table = lance.dataset(str(tmp_path / "l" / "lance" / "embeddings.lance")).to_table()
    rows = rows_of(dataset)
    assert table.schema.field("image_embedding").type == pa.list_(pa.float32(), 48)
    found = table.to_pylist()
    for name in rows[0]:
        assert [row[name] for row in found] == [row[name] for row in rows], name
    labels = {(row["shard"], row["row"]): row for row in rows_of(dataset, "labels/animals")}
    for row in found:
        known = labels[row["shard"], row["row"]]
        if known["label"] is not None:
            assert row["animals"] == {n: known[n] for n in ("label", "probability", "similarity", "margin")}
    opened = lancedb.connect(str(tmp_path / "l" / "lance")).open_table("embeddings")
    best = opened.search(rows[5]["image_embedding"], vector_column_name="image_embedding").limit(1).to_list()
    assert best[0]["key"] == rows[5]["key"]


def test_webdataset_reads_the_tars(dataset, tmp_path):
    wds = pytest.importorskip("webdataset")
    made = export_embeddings(dataset, tmp_path / "w", "webdataset", samples_per_shard=9)
    assert made["counts"]["files"] == 5
    urls = str(tmp_path / "w" / "shards" / "{00000..00004}.tar")
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    rows = rows_of(dataset)
    assert [json.loads(s["json"])["key"] for s in samples] == [row["key"] for row in rows]
    assert [s["__key__"] for s in samples] == [row["key"] for row in rows]
    assert [s.get("txt") for s in samples] == [r["caption"] and r["caption"].encode() for r in rows]
    assert [s.get("jpg") for s in samples] == [None if i == 13 else picture(i) for i in range(44)]
    decoded = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert decoded[0]["jpg"].size == (40, 30) and decoded[0]["json"]["uid"] == UIDS[0]


U16 = np.dtype("u8,u8")


def load_subset(subset_file):
    """As DataComp's resharder loads the file."""
    with open(subset_file, "rb") as file:
        assert file.read(6) == b"\x93NUMPY"
    subset = np.load(subset_file, mmap_mode="r")
    assert subset.dtype == U16
    return subset


def copies(subset, uid):
    """How often the resharder writes a sample, by the uid of its JSON."""
    key = np.array([divmod(int(uid, 16), 2**64)], U16)[0]
    return np.searchsorted(subset, key, "right") - np.searchsorted(subset, key, "left")


def test_datacomps_resharder_finds_each_selected_sample_once(dataset, tmp_path):
    kept = tmp_path / "kept.parquet"
    rows = rows_of(dataset)
    chosen = [row for i, row in enumerate(rows) if i % 3 == 0]
    table = {"shard": [r["shard"] for r in chosen], "row": [r["row"] for r in chosen]}
    pq.write_table(pa.table(table), kept)
    made = export_embeddings(dataset, tmp_path / "d", "datacomp_uids", selection=kept)
    assert made["counts"] == {"selected": 15, "exported": 15, "left_out": {}, "files": 1}
    subset = load_subset(tmp_path / "d" / "datacomp" / "uids.npy")
    assert [copies(subset, uid) for uid in UIDS] == [int(i % 3 == 0) for i in range(44)]
    assert subset.tolist() == sorted(subset.tolist())
    # And its reader of shards finds the uid in what `--as webdataset` writes, beside the counts that it asks for.
    export_embeddings(dataset, tmp_path / "w", "webdataset", selection=kept)
    stats = json.loads((tmp_path / "w" / "shards" / "00000_stats.json").read_text())
    assert stats["successes"] == 15
