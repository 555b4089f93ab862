"""Settings: what the person who starts a run decides, and what of it decides the numbers."""

from __future__ import annotations

import dataclasses
import re

from clip_transforms.clip.model_spec import Checkpoint, ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy, check_names
from clip_transforms.shards.unit import ReaderOptions
from schemas.embeddings import EMBEDDING_DTYPES

RETRY_REJECTS = ("", "read", "all")
# What the tokenizer does is named here, so that a dataset tells when it changed.
_TOKENIZER = "bpe_simple_vocab_16e6, 924691ac288e5440"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the person who starts a run decides; checked when it is built.

    Attributes:
        inputs: see `shards.plan.plan_units`.
        output: URI of the dataset.
        model: the checkpoint.
        taxonomies: to label with.
        reader: what the readers are told.
        embedding_dtype: `float32` or `float16`.
        top_labels: length of a label's `top`.
        batch_size: samples that go through the model together; 0 for 32 on a CPU and 256 on a GPU.
        max_image_pixels: of one picture, stored and resized before its crop.
        fast_decode: whether large JPEGs are decoded at a fraction of their size, which gives slightly other pixels.
        max_reject_fraction: of images and captions apart, beyond which there is no `_SUCCESS`.
        allow_damaged_shards: whether there is one though a shard could not be read to its end.
        retry_rejects: `read` or `all`: committed units with a reject of stage `read`, or with any, are done again.
        overwrite: whether a dataset made with other settings may be replaced.
        processes: on this machine, where the runner starts no workers; 0 for one per GPU, or one per eight cores.
        units: `i/n`, for the units whose index in the plan modulo n is i; None for all.
    """

    inputs: tuple[str, ...]
    output: str
    model: ClipSpec
    taxonomies: tuple[Taxonomy, ...] = ()
    reader: ReaderOptions = dataclasses.field(default_factory=ReaderOptions)
    embedding_dtype: str = "float32"
    top_labels: int = 5
    batch_size: int = 0
    max_image_pixels: int = 89_478_485  # `clip.preprocess.MAX_IMAGE_PIXELS`
    fast_decode: bool = False
    max_reject_fraction: float = 0.05
    allow_damaged_shards: bool = False
    retry_rejects: str = ""
    overwrite: bool = False
    processes: int = 0
    units: str | None = None

    def __post_init__(self):
        """Refuse a wrong setting on the launcher, not on a worker after an hour."""
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
        i, n = self.share
        if i >= n:
            raise ValueError(
                f"--units is {self.units!r}, but it must be i/n with i from 0 to n - 1: 0/4 is the first of four shares"
            )
        check_names(self.taxonomies)

    def resolve_checkpoint(self) -> Checkpoint:
        """The checkpoint, with the preprocessing that this run wants.

        Raises:
            ValueError: if it is missing, or no CLIP.
        """
        checkpoint = self.model.resolve()
        preprocessing = dataclasses.replace(checkpoint.preprocessing, fast_decode=self.fast_decode)
        return dataclasses.replace(checkpoint, preprocessing=preprocessing)

    @property
    def digests(self) -> dict[str, str]:
        """Name → digest of the taxonomies."""
        return {taxonomy.name: taxonomy.digest for taxonomy in self.taxonomies}

    @property
    def share(self) -> tuple[int, int]:
        """`units` as numbers, i and n; (0, 1) if the run does all, (0, 0) if it is no share."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", "0/1" if self.units is None else self.units)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def fingerprint_fields(self, checkpoint: Checkpoint) -> dict[str, str]:
        """What decides the numbers of the dataset, by name."""
        reader_fields = {
            k: v
            for k, v in dataclasses.asdict(self.reader).items()
            if k not in ("input_format", "columns", "allow_uri")
        }
        columns = [f"{c.name}={c.field}:{c.type}" for c in self.reader.columns]
        return {
            "model": checkpoint.sha256,
            "heads": f"{checkpoint.architecture.vision_heads}, {checkpoint.architecture.text_heads}",
            "activation": checkpoint.activation,
            "precision": self.model.precision,
            "preprocessing": checkpoint.preprocessing.describe(),
            "tokenizer": _TOKENIZER,
            "embedding_dtype": self.embedding_dtype,
            "columns": " ".join(columns),
            "max_image_pixels": str(self.max_image_pixels),
            **{name: str(value or "") for name, value in reader_fields.items()},
        }
