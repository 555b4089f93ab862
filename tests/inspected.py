"""A dataset with what each verb makes of it, and what `inspect` says of a path."""

import numpy as np
import pytest
from conftest import make_tar

import clip_transforms as ct
from benchmarks.datasets import write_rows
from clip_transforms.run.inspect_path import inspect_path


@pytest.fixture(name="place", scope="module")
def made_place(tmp_path_factory):
    """A dataset without a model, and what each verb makes of it."""
    place = tmp_path_factory.mktemp("inspected")
    make_tar(place / "0.tar", 8)
    rows = {"caption": [f"number {i}" for i in range(8)], "clip_score": np.linspace(0, 1, 8).astype(np.float32)}
    rows |= {"image_embedding": np.eye(8), "caption_embedding": np.eye(8)}
    rows |= {"image_sha256": [f"{i % 4}" for i in range(8)], "width": [40] * 8, "height": [30] * 8}
    rows |= {"shard": str(place / "0.tar")}
    labels = {"animals": [{"label": ["cat", "dog"] * 4, "probability": np.full(8, 0.5, np.float32)}]}
    out = write_rows(place / "out", [rows], labels)
    ct.filter_embeddings(out, place / "kept", top_fraction=0.3)
    ct.deduplicate_embeddings(out, place / "unique")
    ct.index_embeddings(out, place / "index")
    ct.search_embeddings(out, place / "found", like="000001")
    ct.evaluate_embeddings(out, place / "evaluated", measure="retrieval")
    ct.export_embeddings(out, place / "vectors", "npy")
    ct.export_embeddings(out, place / "chosen", "webdataset")
    ct.report_embeddings(out, place / "report.html", pictures=False)
    return place


def facts(path):
    found = inspect_path(str(path))
    return found.what, dict(found.facts), found.further


def refusal(path):
    with pytest.raises(ValueError) as raised:
        inspect_path(str(path))
    assert "\n" not in str(raised.value)
    return str(raised.value)
