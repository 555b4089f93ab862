"""Write docs/columns.md from the schemas: `python docs/columns.py`. A test fails when the page is stale."""

from pathlib import Path

import pyarrow as pa

from schemas.captions import captions_schema
from schemas.embeddings import embeddings_schema
from schemas.evaluation import per_class_schema, per_group_schema
from schemas.labels import labels_schema
from schemas.left_out import left_out_schema
from schemas.rejects import REASONS, rejects_schema
from schemas.results import results_schema
from schemas.selection import selection_schema

HEAD = """# Columns

Generated from `schemas/` by `python docs/columns.py`. A `?` after a type means that the column may be null.
(`shard`, `row`) is unique in the embeddings and in the labels, (`shard`, `row`, `caption_index`) in the captions, and
(`shard`, `row`, `modality`) in the rejects. The captions exist only with `--captions all`. Rejects then have a fourth
modality, `captions`: one reject stands for all captions of a sample after its first that could not be embedded, and its
message says how many these are.

A folder of pictures becomes several units, and `shard` names one: `<folder>#<path>`, the folder and the path of the
picture before its first one. The first unit has no path. The path of the picture itself is its `key`.
"""


def render() -> str:
    """Return the whole page."""
    tables = {
        "embeddings/*.parquet": embeddings_schema(),
        "labels/<taxonomy>/*.parquet": labels_schema(),
        "captions/*.parquet": captions_schema(),
        "rejects/*.parquet": rejects_schema(),
        "<selection>/parts/*.parquet": selection_schema(pa.float32()),
        "<search>/results.parquet": results_schema(),
        "<export>/left_out.parquet": left_out_schema(),
        "<evaluation>/per_class.parquet": per_class_schema(),
        "<evaluation>/per_group.parquet": per_group_schema(),
    }
    lines = [HEAD]
    for name, schema in tables.items():
        lines += [f"## `{name}`\n", "| column | Arrow type | |", "|---|---|---|"]
        for field in schema:
            text = field.metadata[b"description"].decode()
            lines.append(f"| `{field.name}` | {type_name(field)} | {text} |")
        lines.append("")
    lines += ["## Reject reasons\n", "| stage | reason | |", "|---|---|---|"]
    lines += [f"| {stage} | {reason} | {text} |" for (stage, reason), text in REASONS.items()]
    return "\n".join(lines) + "\n"


def type_name(field) -> str:
    """Return the name of a field's Arrow type, as a reader of the files sees it."""
    name = str(field.type).replace("dictionary<values=string, indices=int32, ordered=0>", "dictionary string")
    name = name.replace("float", "float32").replace("item: ", "")
    return name + ("?" if field.nullable else "")


if __name__ == "__main__":
    Path(__file__).with_name("columns.md").write_text(render())
