"""Rows that wait for their row group to be full, without the record batches that they came in."""

from __future__ import annotations

import pyarrow as pa


class WaitingRows:
    """Rows of a row group to come, as one buffer in Arrow's memory pool.

    Kept as batches, their many small objects would lie in the C heap between the model's activations, and the heap grew
    until the row group was written: docs/decisions.md.
    """

    def __init__(self, schema: pa.Schema):
        """Nothing waits yet; `schema` is that of all batches."""
        self.rows = 0
        self._sink = pa.BufferOutputStream()
        self._stream = pa.ipc.new_stream(self._sink, schema)

    def add(self, batch: pa.RecordBatch) -> None:
        """Copy the rows of a batch; the batch itself is not kept."""
        self._stream.write_batch(batch)
        self.rows += batch.num_rows

    def table(self) -> pa.Table:
        """All rows, in the chunks in which they came; the last call."""
        self._stream.close()
        return pa.ipc.open_stream(self._sink.getvalue()).read_all()
