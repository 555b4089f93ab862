"""Write DataComp's list of samples: the 128-bit uids of the selected rows, sorted, as its resharder reads them."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.rows import ExportRows
from clip_transforms.exports.vectors import NpyFile, new_file

FOLDER, NAME = "datacomp", "uids.npy"
DTYPE = np.dtype("u8,u8")  # the upper and the lower 64 bits
_UID = re.compile(r"[0-9a-fA-F]{32}")
_MEMORY = "1GB"  # of the sort; what does not fit goes to the disk


def write_part(rows: ExportRows, part: str, has_column: bool, uri: str, scratch: str) -> Counter:
    """Write the uids of one part, unless they are there already.

    A uid comes from the user's column `uid`, else from the metadata, else from the key.

    Args:
        rows: the rows that are taken.
        part: name of the part.
        has_column: whether there is a column `uid`.
        uri: URI of the file.
        scratch: URI of the run's temporary folder.
    Returns:
        Counts: `rows`, and `without uid` of those that have none of 32 hexadecimal digits.
    """
    columns = [*(["uid"] if has_column else []), "metadata", "key"]
    table = rows.table(part, columns)
    found = [_uid(row) for row in table.to_pylist()]
    uids = np.array([divmod(int(uid, 16), 1 << 64) for uid in found if uid is not None], DTYPE)
    with new_file(uri, scratch) as local, NpyFile(local, uids.shape, DTYPE) as file:
        file.add(uids)
    return Counter({"rows": len(uids), "without uid": len(found) - len(uids)})


def _uid(row: dict[str, Any]) -> str | None:
    candidates = (row.get("uid"), _of_metadata(row["metadata"]), row["key"])
    return next((one for one in candidates if isinstance(one, str) and _UID.fullmatch(one)), None)


def _of_metadata(text: str | None) -> Any:
    if text is None or '"uid"' not in text:
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return fields.get("uid") if isinstance(fields, dict) else None


def write_uids(uris: Sequence[str], output: str, scratch: str) -> int:
    """Sort the uids of all parts into one file; each once, since the resharder copies a sample as often as it is named.

    Args:
        uris: URIs of the files that `write_part` wrote.
        output: URI of the export.
        scratch: URI of the run's temporary folder.
    Returns:
        The number of uids.
    """
    with tempfile.TemporaryDirectory(prefix="clip-transforms-") as folder:
        body, total = os.path.join(folder, "body"), 0
        with storage.open_output(body) as file:
            for uids in _sorted(uris, folder):
                file.write(uids.tobytes())
                total += len(uids)
        with new_file(storage.join(output, FOLDER, NAME), scratch) as local, storage.open_output(local) as file:
            described = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, described)
            with open(body, "rb") as sorted_uids:
                while block := sorted_uids.read(1 << 20):
                    file.write(block)
    return total


def _sorted(uris: Sequence[str], folder: str) -> Iterator[np.ndarray]:
    """Yield all uids, sorted and each once. DuckDB sorts what does not fit into memory on the disk."""
    settings: dict[str, Any] = {"memory_limit": _MEMORY, "temp_directory": folder, "threads": "2"}
    with duckdb.connect(os.path.join(folder, "uids.duckdb"), config=settings) as connection:
        connection.execute("CREATE TABLE uids (upper UBIGINT, lower UBIGINT)")
        for uri in uris:
            with storage.open_input(uri) as file:
                uids = np.load(file)
            connection.register("found", pa.table({"upper": uids["f0"].copy(), "lower": uids["f1"].copy()}))
            connection.execute("INSERT INTO uids SELECT * FROM found")
            connection.unregister("found")
        found = connection.sql("SELECT DISTINCT upper, lower FROM uids ORDER BY upper, lower")
        for batch in found.to_arrow_reader(1 << 16):
            uids = np.empty(batch.num_rows, DTYPE)
            uids["f0"], uids["f1"] = (column.to_numpy() for column in batch.columns)
            yield uids
