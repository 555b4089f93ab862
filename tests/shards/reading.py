"""Read rows from a path, as the workers do."""

from collections import Counter

import pyarrow.parquet as pq

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions, ShardError
from schemas.samples import samples_schema


def write_side_files(inventory, folder):
    """Write the side files of an inventory, as a run does beside its plan."""
    for name, side_file in inventory.side_files.items():
        with pq.ParquetWriter(folder / name, side_file.schema) as writer:
            for table in side_file.tables({unit.part for unit in inventory.units}):
                writer.write_table(table)


def read(path, tmp_path, options=None, batch_size=3):
    """Return all rows of an input, its notes, and its shard errors."""
    options = options or ReaderOptions()
    inventory = take_inventory([str(path)], options)
    write_side_files(inventory, tmp_path)
    rows, notes, errors = [], Counter(), []
    for unit in inventory.units:
        try:
            for batch in read_unit(unit, options, batch_size, notes, str(tmp_path)):
                assert (
                    batch.schema == samples_schema(options.columns, options.captions)
                    and 0 < batch.num_rows <= batch_size
                )
                rows += batch.to_pylist()
        except ShardError as error:
            errors.append((error.reason, str(error)))
    return rows, dict(notes), errors


def fetched(folder, tmp_path, *uris, **options):
    """Read a listing of these URIs; return the bytes or the reason of the reject for each."""
    (folder / "l.csv").write_text("\n".join(["uri", *uris]))
    rows, _, errors = read(folder / "l.csv", tmp_path, ReaderOptions(**options))
    assert not errors and len(rows) == len(uris)
    return [row["image"] or row["image_reject"]["reason"] for row in rows]
