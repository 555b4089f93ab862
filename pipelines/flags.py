"""The flags of `embed` and `label`, each with the default of the field that it fills."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from clip_transforms.clip.model_spec import DEVICES, PRECISIONS, ClipSpec
from clip_transforms.clip.preprocess import EXIF_ORIENTATIONS
from clip_transforms.clip.recognition import ACTIVATIONS
from clip_transforms.report_embeddings import PAGE
from clip_transforms.run.settings import RETRY_REJECTS, Settings
from clip_transforms.shards.unit import INPUT_FORMATS, ReaderOptions
from pipelines.command_line import CommandParser, add_quiet
from schemas.embeddings import EMBEDDING_DTYPES
from schemas.samples import CAPTIONS

_TAXONOMY: dict[str, Any] = {
    "action": "extend",  # given twice, both count
    "nargs": "+",
    "metavar": "FILE",
    "help": "classes to label with: one or more .txt or .json files, or folders of CLIP_benchmark",
}
_USUAL = "{} (default: %(default)s)".format
EXIT_CODES = (
    "Exit codes: 0: done. 1: the run failed. 2: the command line or the existing output is wrong; nothing was started. "
    "3: the run finished, but with too many rejects, with an unreadable shard, or with nothing embedded at all. Beam's "
    "own flags may follow; the default of --runner is FnApiRunner, which works in this process."
)


def embed_parser() -> CommandParser:
    """Return the parser of `pipelines.embed`. Its flags fill the fields of Settings, ReaderOptions and ClipSpec."""
    parser = CommandParser(
        "embed",
        "Turn image–caption shards into CLIP embeddings, scores, zero-shot labels and rejects, as Parquet.",
        [
            "--input photos --output out --model demo --taxonomy animals.txt",
            "--input 'web/*.tar' --output out-web --model ViT-B/32 --columns url licence",
        ],
        EXIT_CODES,
    )
    for add_flags in (_input_flags, _model_flags, _method_flags, _limit_flags, _output_flags):
        add_flags(parser)
    add_quiet(parser)
    _set_defaults(parser)
    return parser


def _input_flags(parser: CommandParser) -> None:
    add = parser.to("input")
    add(
        "--input",
        dest="inputs",
        action="extend",  # given twice, both count
        nargs="+",
        metavar="URI",
        help="(required) folders, tars, Parquet files, listings (CSV, TSV, JSONL), globs, {0..9} ranges, or @file with "
        "one of these a line",
    )
    add(
        "--input_format",
        choices=INPUT_FORMATS,
        help=_USUAL("read only this format; auto: every format in the input"),
    )
    add(
        "--exclude",
        action="append",
        metavar="GLOB",
        help="files and folders inside the input to leave out: a name such as '*_thumb.jpg' at any depth, or a path "
        "below the input such as 'old/*'; repeatable",
    )
    add(
        "--columns",
        action="extend",  # given twice, both count
        nargs="+",
        metavar="NAME[=FIELD][:TYPE]",
        help="fields of the input to keep as columns of their own",
    )
    add("--image_extension", metavar="EXT", help="extension of the image, if a tar has several images under one key")
    add(
        "--image_column",
        metavar="NAME",
        help="column of images or image URIs in Parquet files and listings, if it does not have a usual name",
    )
    add(
        "--caption_column",
        metavar="NAME",
        help="column of captions in Parquet files and listings; in tars and folders a field of the JSON, or the "
        "extension of the file that holds the caption; a.b is a field of a field, NAME[0] the first entry of a list",
    )
    add(
        "--captions",
        choices=CAPTIONS,
        help=_USUAL(
            "which captions of a sample to embed, if the source lists several; all: each line of a text file and each "
            "text of a JSON list or a list column, with a row each in captions/"
        ),
    )
    add(
        "--key_column",
        metavar="NAME",
        help="column of keys in Parquet files and listings; if omitted: key, uid or __key__, else the row number",
    )
    add(
        "--allow_uri",
        action="append",
        metavar="URI",
        help="place that a listing's URIs may point to besides its own folder: a folder, a host, or https:// for all "
        "public hosts; repeatable",
    )
    add(
        "--units",
        metavar="I/N",
        help="embed only share I of N, counted from 0: the units whose index in the plan modulo N is I; for array jobs",
    )


def _model_flags(parser: CommandParser) -> None:
    add = parser.to("model")
    add("--model", help="(required) a published name such as ViT-B/32, a checkpoint file, or demo")
    add("--activation", choices=ACTIVATIONS, help="activation of the checkpoint, if the file does not say it")
    add(
        "--checkpoint_key",
        metavar="PREFIX",
        help="start of the names of the weights, if the checkpoint holds several models or a larger one, such as "
        "state_dict_ema or clip_model",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        help=_USUAL(
            "precision of the model; auto: bf16 on GPUs from Ampere on, and for ViTs on CPUs that are faster in it; "
            "fp16 on older GPUs; else fp32"
        ),
    )
    add("--device", choices=DEVICES, help=_USUAL("device of the model; auto: CUDA on a worker that has it, else CPU"))
    add(
        "--exif_orientation",
        choices=EXIF_ORIENTATIONS,
        help=_USUAL(
            "what to do with the EXIF orientation of a picture; ignore: embed it as it is stored, like the published "
            "code; apply: turn it as a viewer shows it"
        ),
    )
    add(
        "--fast_decode",
        action="store_true",
        help="decode large JPEGs at a fraction of their size; this is faster and changes their embeddings slightly",
    )


def _method_flags(parser: CommandParser) -> None:
    add = parser.to("method")
    add("--taxonomy", dest="taxonomies", **_TAXONOMY)
    add("--top_labels", type=int, metavar="N", help=_USUAL("number of classes in the labels' column top"))
    add(
        "--batch_size",
        type=int,
        metavar="N",
        help=_USUAL(
            "samples that go through the model together; 0: 32 on a CPU, 256 on a GPU; with 1 an embedding depends on "
            "its sample alone, to the last bit"
        ),
    )
    add(
        "--processes",
        type=int,
        metavar="N",
        help=_USUAL(
            "processes on this machine, each with its own copy of the model; 0: as many a GPU as its memory and 32 "
            "cores each allow, at least one, or one per eight cores"
        ),
    )
    add(
        "--feeders",
        type=int,
        metavar="N",
        help="processes without a model that read, decode and write for each process with one; 0: its threads do that "
        "(default: one per core where a GPU of this machine embeds, else 0)",
    )
    add(
        "--retry_rejects",
        nargs="?",
        const="read",
        choices=RETRY_REJECTS[1:],
        help="embed units again that have rejects: read, if no value is given, for units in which something could not "
        "be read; all for units with any reject",
    )


def _limit_flags(parser: CommandParser) -> None:
    add = parser.to("limits")
    add("--limit", type=int, metavar="N", help=_USUAL("embed only the first N samples of each unit; 0: all samples"))
    add(
        "--max_reject_fraction",
        type=float,
        metavar="F",
        help=_USUAL("largest accepted fraction of rejects, 0 to 1, for images and for captions separately"),
    )
    add("--allow_damaged_shards", action="store_true", help="succeed even if a shard cannot be read to its end")
    add(
        "--max_image_bytes",
        type=int,
        metavar="N",
        help=_USUAL("limit of one encoded image in bytes; a larger one is not read and becomes a reject"),
    )
    add(
        "--max_image_pixels",
        type=int,
        metavar="N",
        help=_USUAL(
            "limit of one image in pixels, both as stored and as resized before the crop; a larger one is not decoded "
            "and becomes a reject"
        ),
    )
    add(
        "--max_caption_bytes",
        type=int,
        metavar="N",
        help=_USUAL("limit of one caption in bytes of UTF-8; a longer one is not read and becomes a reject"),
    )


def _output_flags(parser: CommandParser) -> None:
    add = parser.to("output")
    add("--output", metavar="URI", help="(required) folder of the dataset: a new one, or that of an earlier run")
    add("--embedding_dtype", choices=list(EMBEDDING_DTYPES), help=_USUAL("type of the stored embeddings"))
    add(
        "--report",
        nargs="?",
        const=PAGE,
        metavar="FILE",
        help="at the end write a page about the dataset, as pipelines.report does: an HTML file, "
        f"{PAGE} if no value is given",
    )
    add("--overwrite", action="store_true", help="replace what was made with other settings or other classes")
    add("--dry_run", action="store_true", help="print what was found and what would be done, then stop")


def _set_defaults(parser: argparse.ArgumentParser) -> None:
    """Take the default of every flag from the field of the same name, so that each default is written once."""
    fields = [field for cls in (Settings, ReaderOptions, ClipSpec) for field in dataclasses.fields(cls)]
    flags = {action.dest for action in parser._actions}
    for field in fields:
        if field.name in flags and field.default is not dataclasses.MISSING:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            parser.set_defaults(**{field.name: default})


def label_parser() -> CommandParser:
    """Return the parser of `pipelines.label`."""
    parser = CommandParser(
        "label",
        "Label a finished dataset with new taxonomies: zero-shot labels from its stored embeddings.",
        ["--input out --taxonomy colors.txt", "--input out --taxonomy animals.txt colors.txt --dry_run"],
        EXIT_CODES,
    )
    parser.to("input")("--input", metavar="URI", help="(required) folder of a dataset that pipelines.embed wrote")
    parser.to("model")("--model", help="checkpoint of the dataset, if it was moved since")
    add = parser.to("method")
    add("--taxonomy", dest="taxonomies", default=[], **_TAXONOMY | {"help": f"(required) {_TAXONOMY['help']}"})
    add(
        "--top_labels",
        type=int,
        metavar="N",
        help="number of classes in the labels' column top (default: %(default)s)",
    )
    add = parser.to("output")
    add("--overwrite", action="store_true", help="replace labels of the same name that have other classes")
    add("--dry_run", action="store_true", help="print what would be labelled, then stop")
    add_quiet(parser)
    _set_defaults(parser)
    return parser
