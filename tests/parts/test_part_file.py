"""What waits for a row group is what came, and the batches that it came in are let go."""

import weakref

import pyarrow as pa
import pytest

from clip_transforms.parts.part_file import WaitingRows
from schemas.embeddings import embeddings_schema
from schemas.labels import labels_schema


def embedded(dtype, start, count, shard="s"):
    found = [
        {"key": f"{i}", "shard": shard, "row": i, "image_embedding": [0.6, i / 8] if i % 3 else None, "caption": "é"}
        for i in range(start, start + count)
    ]
    return pa.RecordBatch.from_pylist(found, schema=embeddings_schema(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_table_is_the_batches(dtype):
    """Also slices, batches without a valid embedding, and another dictionary."""
    batches = [embedded(dtype, 0, 7), embedded(dtype, 7, 9).slice(2, 5), embedded(dtype, 3, 1), embedded(dtype, 20, 2)]
    batches.append(embedded(dtype, 30, 3, shard="another"))
    waiting = WaitingRows(batches[0].schema)
    for batch in batches:
        waiting.add(batch)
    table = waiting.table()
    assert waiting.rows == table.num_rows == 18
    assert table.equals(pa.Table.from_batches(batches))
    assert table.schema.equals(batches[0].schema, check_metadata=True)
    assert table.column("key").num_chunks == len(batches)


def test_labels_of_nested_type():
    """A list of structs, and labels that name one class only in one batch and two in the next."""
    batches = [
        pa.RecordBatch.from_pylist(
            [
                {"key": "k", "shard": "s", "row": i, "label": label, "top": [{"label": label, "probability": 0.5}]}
                for i, label in enumerate(names)
            ],
            schema=labels_schema(),
        )
        for names in (["cat"], ["dog", "cat"], [None])
    ]
    waiting = WaitingRows(labels_schema())
    for batch in batches:
        waiting.add(batch)
    assert waiting.table().to_pylist() == pa.Table.from_batches(batches).to_pylist()


def test_a_batch_is_not_kept():
    """Its small objects between the activations of the model are what made memory grow up to a row group."""
    batch = embedded("float32", 0, 4)
    column = batch.column("image_embedding").values.buffers()[1]
    alive = [weakref.ref(batch), weakref.ref(column)]
    waiting = WaitingRows(batch.schema)
    waiting.add(batch)
    del batch, column
    assert [reference() for reference in alive] == [None, None]
    assert waiting.table().num_rows == 4
