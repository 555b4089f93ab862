"""Settings: everything that the person who starts a run decides, and the part of it that decides the numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms import storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.preprocess import EXIF_ORIENTATIONS, MAX_IMAGE_PIXELS
from clip_transforms.clip.recognition import Checkpoint
from clip_transforms.clip.taxonomy import Taxonomy, check_names
from clip_transforms.labels.part import TOP_LABELS
from clip_transforms.shards.unit import ReaderOptions
from schemas.embeddings import EMBEDDING_DTYPES, embeddings_schema
from schemas.labels import taken_names

RETRY_REJECTS = ("", "read", "all")
# This names the tokenizer in the fingerprint. Change it if tokens ever change.
_TOKENIZER = "bpe_simple_vocab_16e6, 924691ac288e5440"
# Options of the readers that the fingerprint of every dataset names.
_FIRST_OPTIONS = (
    *("image_extension", "image_column", "caption_column", "key_column"),
    *("limit", "max_image_bytes", "max_caption_bytes"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that the person who starts a run decides. Building it checks it.

    Attributes:
        inputs: folders, tars, Parquet files, listings, globs, brace patterns or `@file`.
        output: URI of the dataset.
        model: the checkpoint.
        taxonomies: taxonomies to label with.
        reader: options of the readers.
        embedding_dtype: type of the stored embeddings, `float32` or `float16`.
        top_labels: length of a label's `top`.
        batch_size: number of samples that go through the model together; 0 means 32 on a CPU and 256 on a GPU.
        max_image_pixels: limit for one picture, both as stored and as resized before its crop.
        fast_decode: whether large JPEGs are decoded at a fraction of their size, which changes pixels slightly.
        exif_orientation: `ignore`, as published, or `apply`, which turns pictures as a viewer shows them.
        max_reject_fraction: largest share of rejects, among images and among captions, with which a run succeeds.
        allow_damaged_shards: whether a run succeeds although a shard could not be read to its end.
        retry_rejects: `read` embeds committed units again that have a reject of stage `read`, `all` those with any.
        overwrite: whether a dataset made with other settings may be replaced.
        processes: number of processes on this machine, unless the runner starts workers itself; 0 means as many a GPU
            as its memory and 32 cores each allow, at least one, or one per eight cores without a GPU.
        feeders: number of processes without a model that read, decode and write for each process with one; 0 leaves
            that to its threads. None means one per core where a GPU of this machine embeds, and 0 elsewhere.
        units: `i/n` does every n-th unit of the plan, starting with unit i (from 0); None does all.
    """

    inputs: tuple[str, ...]
    output: str
    model: ClipSpec
    taxonomies: tuple[Taxonomy, ...] = ()
    reader: ReaderOptions = dataclasses.field(default_factory=ReaderOptions)
    embedding_dtype: str = "float32"
    top_labels: int = TOP_LABELS
    batch_size: int = 0
    max_image_pixels: int = MAX_IMAGE_PIXELS
    fast_decode: bool = False
    exif_orientation: str = "ignore"
    max_reject_fraction: float = 0.05
    allow_damaged_shards: bool = False
    retry_rejects: str = ""
    overwrite: bool = False
    processes: int = 0
    feeders: int | None = None
    units: str | None = None

    def __post_init__(self):
        """Refuse a wrong setting on the launcher, not on a worker after an hour."""
        storage.check_types(self)
        if not isinstance(self.reader, ReaderOptions):
            storage.refuse_type("reader", self.reader, "a ReaderOptions, such as ReaderOptions(limit=100)")
        if not all(self.inputs) or not self.inputs:
            raise ValueError("--input is empty; name at least one folder, tar, Parquet file or pattern")
        if self.embedding_dtype not in EMBEDDING_DTYPES:
            allowed = " or ".join(EMBEDDING_DTYPES)
            raise ValueError(f"--embedding_dtype is {self.embedding_dtype!r}, but it must be {allowed}")
        if self.top_labels < 1:
            raise ValueError(f"--top_labels is {self.top_labels}, but it must be 1 or more")
        if self.batch_size < 0:
            raise ValueError(f"--batch_size is {self.batch_size}, but it must be 1 or more, or 0 to choose by device")
        if self.max_image_pixels < 1:
            raise ValueError(f"--max_image_pixels is {self.max_image_pixels}, but it must be 1 or more")
        if self.exif_orientation not in EXIF_ORIENTATIONS:
            allowed = " or ".join(EXIF_ORIENTATIONS)
            raise ValueError(f"--exif_orientation is {self.exif_orientation!r}, but it must be {allowed}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"--max_reject_fraction is {self.max_reject_fraction}, but it is a fraction of the samples and must "
                "lie in [0, 1]"
            )
        if self.retry_rejects not in RETRY_REJECTS:
            raise ValueError(f"--retry_rejects is {self.retry_rejects!r}, but it must be read or all")
        if self.processes < 0:
            raise ValueError(
                f"--processes is {self.processes}, but it must be 1 or more, or 0 to choose by the machine"
            )
        if self.feeders is not None and self.feeders < 0:
            raise ValueError(f"--feeders is {self.feeders}, but it must be 0 or more; omit it for as many as are usual")
        i, n = self.share
        if i >= n:
            raise ValueError(
                f"--units is {self.units!r}, but it must be i/n with i from 0 to n - 1: 0/4 is the first of four shares"
            )
        check_names(self.taxonomies, taken_names(embeddings_schema(columns=self.reader.columns).names))

    def resolve_checkpoint(self) -> Checkpoint:
        """Find the checkpoint, and give it the preprocessing that this run asks for.

        Raises:
            ValueError: if it is missing, or is not a CLIP.
        """
        checkpoint = self.model.resolve()
        preprocessing = dataclasses.replace(
            checkpoint.preprocessing, fast_decode=self.fast_decode, exif_orientation=self.exif_orientation
        )
        return dataclasses.replace(checkpoint, preprocessing=preprocessing)

    @property
    def digests(self) -> dict[str, str]:
        """Name → digest of the taxonomies."""
        return {taxonomy.name: taxonomy.digest for taxonomy in self.taxonomies}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of parts that a unit has beside its embeddings; without them it is not committed."""
        return ("captions", "rejects") if self.reader.captions == "all" else ("rejects",)

    @property
    def share(self) -> tuple[int, int]:
        """`units` as numbers (i, n): (0, 1) if the run does all units, (0, 0) if `units` is malformed."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", "0/1" if self.units is None else self.units)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def fingerprint_fields(self, checkpoint: Checkpoint) -> dict[str, str]:
        """The settings that decide the numbers of the dataset, by name."""
        decides_nothing = ("input_format", "exclude", "columns", "allow_uri")
        reader_fields = {
            f.name: getattr(self.reader, f.name)
            for f in dataclasses.fields(self.reader)
            # An option that is younger than the format counts only if it is used, so that older datasets stay the same.
            if f.name not in decides_nothing and (f.name in _FIRST_OPTIONS or getattr(self.reader, f.name) != f.default)
        }
        columns = [f"{c.name}={c.field}:{c.type}" for c in self.reader.columns]
        return {
            "model": checkpoint.sha256,
            "heads": f"{checkpoint.architecture.vision_heads}, {checkpoint.architecture.text_heads}",
            "activation": checkpoint.activation,
            "precision": self.model.precision,
            "preprocessing": checkpoint.preprocessing.describe(),
            "tokenizer": _TOKENIZER,
            **({"checkpoint_key": checkpoint.key} if checkpoint.key else {}),
            "embedding_dtype": self.embedding_dtype,
            "columns": " ".join(columns),
            "max_image_pixels": str(self.max_image_pixels),
            **{name: str(value or "") for name, value in reader_fields.items()},
        }


def reader_options(fields: Mapping[str, str], allow_uri: Sequence[str] = ()) -> ReaderOptions:
    """Return the readers' options that a dataset was made with, from the fields of its fingerprint.

    The user's columns are not among them: their values are in the dataset.

    Args:
        fields: `settings` of `_dataset.json`.
        allow_uri: places that the URIs of a listing may point to. A dataset does not store them: it may come from
            somebody else, and whoever reads decides.
    """
    named = {f.name: f for f in dataclasses.fields(ReaderOptions) if f.name in fields and f.name != "columns"}
    texts = {name: fields[name] for name in named if fields[name]}
    values: dict[str, Any] = {
        name: int(text) if isinstance(named[name].default, int) else text for name, text in texts.items()
    }
    return ReaderOptions(**values, allow_uri=tuple(allow_uri))
