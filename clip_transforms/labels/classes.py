"""Embed the classes of taxonomies into `out/taxonomies/`, once per dataset; every worker reads them from there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.labels.batch import Classifier
from clip_transforms.parts.footers import read_footer
from schemas.provenance import decode_footer, encode_footer

_LOGGER = logging.getLogger(__name__)
_SAME = 0.9999  # if two classes' embeddings have a larger cosine, the model cannot tell the classes apart
CLASSES = pa.schema(
    [("class", pa.string()), ("prompts", pa.list_(pa.string())), ("class_embedding", pa.list_(pa.float32()))]
)


def embed_classes(
    output: str, taxonomies: Sequence[Taxonomy], checkpoint: Checkpoint, device: str, scratch: str
) -> dict[str, str]:
    """Embed the classes of taxonomies with the text tower alone, in fp32, unless an earlier run has done so.

    Args:
        output: the URI of the dataset.
        taxonomies: the taxonomies.
        checkpoint: the checkpoint with the text tower.
        device: the device to embed on.
        scratch: the URI of the run's temporary folder.
    Returns:
        The taxonomy's name → the URI of its class embeddings.
    """
    uris = {taxonomy.name: _classes_uri(output, taxonomy) for taxonomy in taxonomies}
    missing = [t for t in taxonomies if not _is_current(uris[t.name], t, checkpoint)]
    if missing:
        from clip_transforms.clip.checkpoints import load_checkpoint  # imports torch, which is not always needed

        model = load_checkpoint(checkpoint, device, "fp32", vision=False)
        for taxonomy in missing:
            _write(uris[taxonomy.name], taxonomy, checkpoint, model, scratch)
    return uris


def _classes_uri(output: str, taxonomy: Taxonomy) -> str:
    return storage.join(output, "taxonomies", f"{taxonomy.name}.parquet")


def check_classes(output: str, taxonomies: Sequence[Taxonomy]) -> None:
    """Refuse class embeddings that a newer version of this program wrote.

    Raises:
        FormatError: naming the file.
    """
    for taxonomy in taxonomies:
        if storage.exists(uri := _classes_uri(output, taxonomy)):
            read_footer(uri)


def _is_current(uri: str, taxonomy: Taxonomy, checkpoint: Checkpoint) -> bool:
    footer = read_footer(uri) if storage.exists(uri) else None
    return footer is not None and footer.get("maker") == _maker(taxonomy, checkpoint)


def _maker(taxonomy: Taxonomy, checkpoint: Checkpoint) -> list[str]:
    return [taxonomy.digest, checkpoint.identity, checkpoint.activation]


def _write(uri: str, taxonomy: Taxonomy, checkpoint: Checkpoint, model, scratch: str) -> None:
    from clip_transforms.clip.zero_shot import zero_shot_classifier

    classifier = zero_shot_classifier(model, taxonomy).numpy()
    _warn_of_twins(taxonomy, classifier)
    rows = [
        {"class": c.name, "prompts": taxonomy.prompts(c), "class_embedding": weights}
        for c, weights in zip(taxonomy.classes, classifier, strict=True)
    ]
    footer = encode_footer(
        {
            "taxonomy": taxonomy.name,
            "taxonomy_digest": taxonomy.digest,
            "maker": _maker(taxonomy, checkpoint),
            "logit_scale": float(model.logit_scale),
        }
    )
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, CLASSES, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=CLASSES))
        writer.add_key_value_metadata(footer)
    storage.write_bytes(uri, sink.getvalue().to_pybytes(), scratch)


def _warn_of_twins(taxonomy: Taxonomy, classifier: np.ndarray) -> None:
    """Log one line about classes that the model cannot tell apart.

    The cosines are computed in blocks of rows: for ten thousand classes, the whole matrix would take 400 MB.
    """
    names, twins = taxonomy.class_names, []
    for start in range(0, len(names), 256):
        cosines = classifier[start : start + 256] @ classifier.T
        for i, j in np.argwhere(cosines > _SAME):
            if start + i < j:
                twins.append(f"{names[start + i]!r} and {names[j]!r}")
    if twins:
        more = f" and {len(twins) - 3} more pairs" if len(twins) > 3 else ""
        _LOGGER.warning(
            "taxonomy %s: this model cannot tell these classes apart: %s%s", taxonomy.name, "; ".join(twins[:3]), more
        )


@functools.lru_cache(maxsize=16)
def read_classifier(uri: str, taxonomy_digest: str) -> Classifier:
    """Read class embeddings, once per process.

    Raises:
        RuntimeError: if the file holds other classes, because another run has replaced it.
    """
    with storage.open_input(uri) as file:
        table = pq.ParquetFile(file).read(use_threads=False)
    footer = decode_footer(table.schema.metadata, uri)
    if footer is None or footer["taxonomy_digest"] != taxonomy_digest:
        raise RuntimeError(f"{uri} was replaced by another run while this one was running; start this one again")
    weights = np.stack(table.column("class_embedding").to_numpy())
    return Classifier(
        tuple(table.column("class").to_pylist()), weights, float(np.exp(np.float32(footer["logit_scale"])))
    )
