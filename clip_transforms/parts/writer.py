"""Write all parts of one unit, then let them appear: labels and captions, then rejects, and last the embeddings."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.counts import ALL, SEEN, check_balance
from clip_transforms.parts.part_file import Digest, PartFile
from schemas.embeddings import reserved_names
from schemas.labels import labels_schema
from schemas.provenance import Footer
from schemas.rejects import FURTHER_CAPTIONS, rejects_schema
from schemas.samples import MODALITIES


@dataclasses.dataclass(frozen=True)
class PartSettings:
    """What all parts of a run share.

    Attributes:
        output: URI of the dataset.
        run_folder: URI of `output/_temporary/<run>`, where files are prepared if the output is local.
        embeddings_schema: schema of the embeddings.
        footer: entries of every part's footer.
        label_footers: taxonomy → the entries that only its labels parts have.
        captions_schema: schema of all captions; None without `--captions all`.
        other_kinds: kinds of parts that only earlier runs made, such as `labels/animals`; those of a unit go when its
            embeddings are replaced.
    """

    output: str
    run_folder: str
    embeddings_schema: pa.Schema
    footer: Footer
    label_footers: Mapping[str, Footer] = dataclasses.field(default_factory=dict)
    captions_schema: pa.Schema | None = None
    other_kinds: Sequence[str] = ()


class UnitWriter:
    """Writes the parts of one unit. Nothing appears under a final name before `commit`; use it as a context manager."""

    def __init__(self, settings: PartSettings, part: str, facts: Footer):
        """Open the files.

        Args:
            settings: what all parts of the run share.
            part: name of the part.
            facts: entries of the footer that belong to the unit: its shard and stamp.
        """
        self._settings, self._part, self._facts = settings, part, facts
        self._folder = _local_folder(settings.output, settings.run_folder, part)
        schemas = {"embeddings": settings.embeddings_schema, "rejects": rejects_schema()}
        if settings.captions_schema is not None:
            schemas[ALL] = settings.captions_schema
        schemas |= {f"labels/{taxonomy}": labels_schema() for taxonomy in settings.label_footers}
        self._files = {kind: PartFile(self._folder, kind, schema) for kind, schema in schemas.items()}
        self._digest = Digest(settings.embeddings_schema, rejects_schema(), settings.captions_schema)
        self.counts: Counter = Counter()
        self._user_columns = [n for n in settings.embeddings_schema.names if n not in reserved_names()]

    def write(
        self,
        rows: pa.RecordBatch,
        labels: Mapping[str, pa.RecordBatch],
        rejects: pa.RecordBatch,
        absent: Mapping[str, int],
    ) -> None:
        """Add a batch and count it."""
        self._files["embeddings"].add(rows)
        for taxonomy, batch in labels.items():
            self._files[f"labels/{taxonomy}"].add(batch)
        self._digest.add_rows(rows)
        self._count(rows, absent)
        self.reject(rejects)

    def write_captions(self, captions: pa.RecordBatch, rejected: Mapping[str, int]) -> None:
        """Add all captions of a batch, and count them.

        Args:
            captions: rows of the captions schema.
            rejected: `<stage>: <reason>` → number of captions.
        """
        self._files[ALL].add(captions)
        self._digest.add_captions(captions)
        self.counts[f"{ALL}.embedded"] += captions.num_rows
        self.counts[f"{ALL}.truncated"] += captions.column("caption_truncated").true_count
        self.counts[f"{ALL}.rejected"] += sum(rejected.values())
        self.counts.update({f"{ALL}.rejected.{reason}": count for reason, count in rejected.items()})

    def reject(self, rejects: pa.RecordBatch) -> None:
        """Add rejects and count them."""
        self._files["rejects"].add(rejects)
        self._digest.add_rejects(rejects)
        for reject in rejects.select(["modality", "stage", "reason"]).to_pylist():
            modality = reject["modality"]
            if modality == "shard":
                self.counts["shards.rejected"] += 1
            elif modality != FURTHER_CAPTIONS:  # one such row stands for several captions; write_captions counts them
                self.counts[f"{modality}.rejected"] += 1
                self.counts[f"{modality}.rejected.{reject['stage']}: {reject['reason']}"] += 1

    def _count(self, rows: pa.RecordBatch, absent: Mapping[str, int]) -> None:
        self.counts["rows"] += rows.num_rows
        for modality in MODALITIES:
            embeddings = rows.column(f"{modality}_embedding")
            self.counts[f"{modality}.embedded"] += len(embeddings) - embeddings.null_count
            self.counts[f"{modality}.absent"] += absent[modality]
        self.counts["caption.truncated"] += rows.column("caption_truncated").true_count
        for name in self._user_columns:
            self.counts[f"column.{name}"] += len(rows) - rows.column(name).null_count

    def commit(self, samples: int, notes: Mapping[str, int], captions: int | None = None) -> Counter:
        """Check the balance, close the files, move them to their final names, and return the counts of the part.

        Args:
            samples: number of samples that the reader counted.
            notes: counts of things worth telling.
            captions: number of all captions that the reader counted; None without `--captions all`.
        Raises:
            BalanceError: if samples were lost or made up. Nothing is committed then.
        """
        self.counts["samples"] = samples
        if captions is not None:
            self.counts[f"{ALL}.offered"] = captions
        self.counts.update({text if text.startswith(SEEN) else f"note.{text}": n for text, n in notes.items()})
        check_balance(self.counts, self._facts["shard"])
        digest = self._digest.hexdigest()
        common: Footer = {**self._settings.footer, **self._facts, "digest": digest, "counts": dict(self.counts)}
        for taxonomy, footer in self._settings.label_footers.items():
            self._files[f"labels/{taxonomy}"].close({**common, **footer})
        # The embeddings are the commit marker, so everything else must be there before them.
        others = ([] if self._settings.captions_schema is None else [ALL]) + ["rejects", "embeddings"]
        for kind in others:
            self._files[kind].close(common)
        for kind in self._settings.other_kinds:
            # They belong to the embeddings that are about to be replaced, and would join to other samples' rows.
            storage.remove(storage.join(self._settings.output, kind, f"{self._part}.parquet"))
        for kind in (*(f"labels/{taxonomy}" for taxonomy in self._settings.label_footers), *others):
            uri = storage.join(self._settings.output, kind, f"{self._part}.parquet")
            storage.commit_file(self._files[kind].path, uri)
        return self.counts

    def __enter__(self) -> UnitWriter:
        """The writer itself."""
        return self

    def __exit__(self, *_) -> None:
        """Remove everything that was not committed."""
        for file in self._files.values():
            file.discard()
        shutil.rmtree(self._folder, ignore_errors=True)


class LabelsWriter:
    """Writes the labels part of one taxonomy for a unit whose embeddings are committed; use it as a context manager."""

    def __init__(self, output: str, run_folder: str, taxonomy: str, part: str):
        """Open the file. Nothing appears before `commit`."""
        self._folder = _local_folder(output, run_folder, part)
        self._uri = storage.join(output, "labels", taxonomy, f"{part}.parquet")
        self._file = PartFile(self._folder, "labels", labels_schema())

    def add(self, labels: pa.RecordBatch) -> None:
        """Take a batch."""
        self._file.add(labels)

    def commit(self, footer: Footer) -> None:
        """Finish the file and let it appear under its final name."""
        self._file.close(footer)
        storage.commit_file(self._file.path, self._uri)

    def __enter__(self) -> LabelsWriter:
        """The writer itself."""
        return self

    def __exit__(self, *_) -> None:
        """Remove everything that was not committed."""
        self._file.discard()
        shutil.rmtree(self._folder, ignore_errors=True)


def _local_folder(output: str, run_folder: str, part: str) -> str:
    """Make a folder to prepare files in: near a local output, where a rename commits, else in the temporary folder."""
    parent = storage.normalise(run_folder) if storage.is_local(output) else None
    return tempfile.mkdtemp(prefix=f"{part}-", dir=parent)
