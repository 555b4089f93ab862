"""A small dataset to filter, and what a filter wrote."""

import numpy as np
import pyarrow.parquet as pq

from benchmarks.datasets import write_rows
from clip_transforms import filter_embeddings
from clip_transforms.clip.taxonomy import Taxonomy

SCORES = [[0.5, 0.1, None, 0.3], [0.3, 0.3], [], [0.9, float("nan"), 0.3]]
LABELS = [["cat", "dog", None, "cat"], ["cat", "cat"], [], ["dog", "cat", "cat"]]
ANIMALS = Taxonomy.from_json("animals", {"classes": ["cat", "dog"]}).digest + " top 5"
CONDITIONS = {"where": "animals.label = 'cat'", "by": "clip_score", "top_count": 3}


def write(folder, scores=SCORES, labels=LABELS, classes=("cat", "dog")):
    parts = [{"clip_score": of, "width": [10] * len(of), "image_embedding": np.eye(len(of), 4)} for of in scores]
    labels = [
        {"label": of[: len(part)], "probability": [0.5] * len(part)} for of, part in zip(labels, scores, strict=True)
    ]
    return write_rows(folder, parts, {"animals": labels}, classes=classes)


def files(folder):
    """Path → bytes of everything that a verb wrote."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def kept(folder):
    """(part, row) of the kept rows, in the order of the files."""
    paths = sorted((folder / "parts").iterdir())
    return [(int(path.stem[-5:]), row) for path in paths for row in pq.read_table(path)["row"].to_pylist()]


def select(dataset, tmp_path, name, **conditions):
    filter_embeddings(dataset, tmp_path / name, **conditions)
    return tmp_path / name


def write_csv(path, rows):
    # As a spreadsheet writes it where a comma separates decimals.
    path.write_text("row;shard;note\n" + "".join(f'{row};{shard};"two\nlines"\n' for shard, row in rows))
