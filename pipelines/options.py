"""Command lines: our own flags, Beam's behind them, and one sentence for what is neither."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions

from clip_transforms.clip.model_spec import ACTIVATIONS, DEVICES, PRECISIONS, ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.run.plan import RunPlan
from clip_transforms.run.settings import RETRY_REJECTS, Settings
from clip_transforms.shards.unit import INPUT_FORMATS, ReaderOptions
from clip_transforms.workers.machine import has_nvidia, torch_is_cpu_only
from clip_transforms.workers.runner import is_direct, workers_of
from pipelines.beam_options import beam_parser
from pipelines.command_line import Parser, UsageError
from schemas.embeddings import EMBEDDING_DTYPES, reserved_names
from schemas.samples import Column

EXIT_CODES = (
    "Exit codes: 0 done; 1 the run failed; 2 the command line or the output is wrong, nothing was started; 3 finished, "
    "but too many rejects or an unreadable shard. Beam's own flags may follow; --runner is FnApiRunner, in this "
    "process, unless it is given."
)


def embed_parser() -> argparse.ArgumentParser:
    """The flags of `pipelines.embed`."""
    parser = Parser(
        prog="python -m pipelines.embed",
        description="Image–caption shards → CLIP embeddings, scores, zero-shot labels and rejects, as Parquet.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--input",
        action="extend",  # given twice, both count
        nargs="+",
        default=[],
        metavar="URI",
        help="(required) folders, tars, Parquet files, listings (CSV, TSV, JSONL), globs, {0..9}, @file",
    )
    add("--output", default="", metavar="URI", help="(required) folder of the dataset, new or of an earlier run")
    add("--model", default="", help="(required) a published name such as ViT-B/32, a checkpoint file, or demo")
    add("--activation", choices=ACTIVATIONS, help="what the checkpoint was trained with, if it does not say so")
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the towers; auto (default): bf16 with AMX and on GPUs from Ampere on, fp16 on older GPUs, else fp32",
    )
    add("--device", choices=DEVICES, default="auto", help="auto (default): CUDA where a worker has it")
    add("--taxonomy", action="append", default=[], metavar="FILE", help="classes to label with; repeatable")
    add(
        "--columns",
        action="extend",  # given twice, both count
        nargs="+",
        default=[],
        metavar="NAME[=FIELD][:TYPE]",
        help="fields of the input to keep as columns of their own",
    )
    add(
        "--embedding_dtype",
        choices=list(EMBEDDING_DTYPES),
        default="float32",
        help="of the stored embeddings (%(default)s)",
    )
    add("--top_labels", type=int, default=5, metavar="N", help="classes listed in the labels' column top (%(default)s)")
    add("--batch_size", type=int, default=0, metavar="N", help="samples at a time; 0: 32 on a CPU, 256 on a GPU")
    add(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="on this machine, each with a model of its own; 0, the default: one per GPU, or one per eight cores",
    )
    add(
        "--max_reject_fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="the most rejects, of images and captions apart, 0 to 1 (%(default)s)",
    )
    add("--allow_damaged_shards", action="store_true", help="succeed though a shard cannot be read to its end")
    add(
        "--retry_rejects",
        nargs="?",
        const="read",
        default="",
        choices=RETRY_REJECTS[1:],
        help="do units again of which something could not be read; all: those with any reject",
    )
    add("--overwrite", action="store_true", help="replace what was made with other settings or other classes")
    add(
        "--limit",
        type=int,
        default=0,
        metavar="N",
        help="only the first N samples of each unit; 0, the default, for all",
    )
    add("--input_format", choices=INPUT_FORMATS, default="auto", help="take only this from the input (%(default)s)")
    add("--image_extension", metavar="EXT", help="of the image, where a tar has several images under a key")
    add("--image_column", metavar="NAME", help="of Parquet and listings, where it is not called like an image or a URI")
    add("--caption_column", metavar="NAME", help="of Parquet and listings; NAME[0] of a list")
    add("--key_column", metavar="NAME", help="of Parquet and listings; else key, uid, __key__, else the row")
    add(
        "--allow_uri",
        action="append",
        default=[],
        metavar="URI",
        help="where a listing's URIs may point to besides its own folder: a folder, a host, or https:// for all public "
        "hosts; repeatable",
    )
    limit = "{} (%(default)s); what is over it is a reject, and not read".format
    add("--max_image_bytes", type=int, default=64 << 20, metavar="N", help=limit("of one encoded image, in bytes"))
    add(
        "--max_image_pixels",
        type=int,
        default=89_478_485,
        metavar="N",
        help="of one picture, stored, and resized before its crop (%(default)s); what is over it is not decoded",
    )
    add("--max_caption_bytes", type=int, default=16_384, metavar="N", help=limit("of one caption, in bytes of UTF-8"))
    add(
        "--fast_decode",
        action="store_true",
        help="decode large JPEGs at a fraction of their size: sooner done, and slightly other embeddings",
    )
    add(
        "--units",
        metavar="I/N",
        help="only the share I, from 0 on, of N: the units whose index in the plan modulo N is I, as for an array job",
    )
    add("--dry_run", action="store_true", help="print what was found and what would be done, and stop")
    return parser


def label_parser() -> argparse.ArgumentParser:
    """The flags of `pipelines.label`."""
    parser = Parser(
        prog="python -m pipelines.label",
        description="New taxonomies over a finished dataset: zero-shot labels from its stored embeddings.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", default="", metavar="URI", help="(required) folder of a dataset that pipelines.embed wrote")
    add("--taxonomy", action="append", default=[], metavar="FILE", help="classes to label with; repeatable")
    add("--model", default="", help="the dataset's own checkpoint, where it was moved since")
    add("--top_labels", type=int, default=5, metavar="N", help="classes listed in the labels' column top (%(default)s)")
    add("--overwrite", action="store_true", help="replace labels of the same name and other classes")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, PipelineOptions]:
    """Split a command line into our options and Beam's.

    Raises:
        UsageError: if a flag is neither's. Beam itself would drop it without a word.
    """
    argv = list(argv)
    own, behind = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    options, rest = parser.parse_known_args(own)
    beams = beam_parser()
    _, unknown = beams.parse_known_args(rest)
    beams.parse_known_args(behind)  # what Beam knows must be right there too; it would end the process with its usage
    if unknown:
        if not unknown[0].startswith("-"):
            raise UsageError(f"{unknown[0]!r} stands without a flag; write --input {unknown[0]} if it is to be read")
        flag = unknown[0].split("=")[0]
        known = [name for p in (parser, beams) for action in p._actions for name in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"{flag} is no flag of this command or of Beam; {hint}--help lists ours; what must go through unseen goes "
            "behind --"
        )
    return options, PipelineOptions([*rest, *behind])


def check_device(device: str, options: PipelineOptions) -> None:
    """Refuse `--device cuda` where the work is done on this machine and it has no CUDA; torch is not imported for it.

    Raises:
        UsageError: naming what is missing.
    """
    if device != "cuda" or not is_direct(options):
        return
    if not has_nvidia():
        raise UsageError("--device is cuda, but this machine shows no NVIDIA device; use --device auto or --device cpu")
    if torch_is_cpu_only():
        raise UsageError(
            f"--device is cuda, but torch {importlib.metadata.version('torch')} is built without it; install a CUDA "
            "build of torch, or use --device cpu"
        )


def warnings_of(plan: RunPlan, options: PipelineOptions) -> list[str]:
    """One line for each usual mistake that is no error."""
    lines, device = [], plan.settings.model.device
    workers = max(workers_of(options), plan.settings.processes)
    if len(plan.pending) == 1 and workers > 1:
        lines.append(
            f"warning: one unit for {workers} workers, so one of them does it all; a tar is one unit, so cut it into "
            "several, and write Parquet in row groups of at most 10,000 rows"
        )
    if device == "auto" and is_direct(options) and has_nvidia() and torch_is_cpu_only():
        lines.append("warning: this machine has an NVIDIA device, but torch is built without CUDA, so the CPU is used")
    return lines


def embed_settings(options: argparse.Namespace) -> Settings:
    """Our options → the settings of a run.

    Raises:
        ValueError: with one sentence for the first setting that is wrong.
    """
    if not options.model:
        raise UsageError(
            "--model is missing: ViT-B/32 is the usual one, demo the small one that comes with this package"
        )
    for flag in ("input", "output"):
        if not getattr(options, flag):
            raise UsageError(f"--{flag} is missing; see --help")
    columns = tuple(Column.parse(text, reserved_names()) for text in options.columns)
    names = [column.name.lower() for column in columns]
    if len(set(names)) < len(names):
        raise UsageError("--columns names one column twice; give each its own name")
    return Settings(
        inputs=tuple(options.input),
        output=options.output,
        model=ClipSpec(options.model, options.activation, options.precision, options.device),
        taxonomies=tuple(Taxonomy.load(uri) for uri in options.taxonomy),
        reader=ReaderOptions(
            input_format=options.input_format,
            image_extension=options.image_extension,
            image_column=options.image_column,
            caption_column=options.caption_column,
            key_column=options.key_column,
            columns=columns,
            limit=options.limit,
            max_image_bytes=options.max_image_bytes,
            max_caption_bytes=options.max_caption_bytes,
            allow_uri=tuple(options.allow_uri),
        ),
        max_image_pixels=options.max_image_pixels,
        fast_decode=options.fast_decode,
        embedding_dtype=options.embedding_dtype,
        top_labels=options.top_labels,
        batch_size=options.batch_size,
        max_reject_fraction=options.max_reject_fraction,
        allow_damaged_shards=options.allow_damaged_shards,
        retry_rejects=options.retry_rejects,
        overwrite=options.overwrite,
        processes=options.processes,
        units=options.units,
    )
