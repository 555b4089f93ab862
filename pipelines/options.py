"""Command lines: our own flags, then Beam's, and one sentence about a flag that is neither."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

from clip_transforms.clip.model_spec import ACTIVATIONS, DEVICES, PRECISIONS, ClipSpec
from clip_transforms.clip.preprocess import EXIF_ORIENTATIONS
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.parts.counts import counted
from clip_transforms.report_embeddings import PAGE
from clip_transforms.run.plan import RunPlan
from clip_transforms.run.processes import count_processes
from clip_transforms.run.settings import RETRY_REJECTS, Settings
from clip_transforms.shards.unit import INPUT_FORMATS, ReaderOptions
from clip_transforms.workers.machine import cores, gpus_for, has_nvidia, torch_is_cpu_only
from clip_transforms.workers.runner import in_process, is_direct, is_direct_runner, workers_of
from pipelines.beam_options import beam_parser, flags_without_effect
from pipelines.command_line import Parser, UsageError, meant_instead, nearest
from schemas.embeddings import EMBEDDING_DTYPES
from schemas.samples import CAPTIONS

_Record = TypeVar("_Record", Settings, ReaderOptions, ClipSpec)
_PROCESSES_PER_GPU = 4  # beyond this, another process only takes more of the GPU's memory
_TAXONOMY: dict[str, Any] = {
    "action": "extend",  # given twice, both count
    "nargs": "+",
    "metavar": "FILE",
    "help": "classes to label with: one or more .txt or .json files",
}
_REQUIRED = (
    ("--model", "model", "; ViT-B/32 is the usual model, and demo is a small one that comes with this package"),
    ("--input", "inputs", "; see --help"),
    ("--output", "output", "; see --help"),
)
EXIT_CODES = (
    "Exit codes: 0: done. 1: the run failed. 2: the command line or the existing output is wrong; nothing was started. "
    "3: the run finished, but with too many rejects, with an unreadable shard, or with nothing embedded at all. Beam's "
    "own flags may follow; the default of --runner is FnApiRunner, which works in this process."
)


def embed_parser() -> argparse.ArgumentParser:
    """Return the parser of `pipelines.embed`. Its flags fill the fields of Settings, ReaderOptions and ClipSpec."""
    parser = Parser(
        prog="python -m pipelines.embed",
        description="Turn image–caption shards into CLIP embeddings, scores, zero-shot labels and rejects, as Parquet.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    usual = "{} (default: %(default)s)".format
    add(
        "--input",
        dest="inputs",
        action="extend",  # given twice, both count
        nargs="+",
        metavar="URI",
        help="(required) folders, tars, Parquet files, listings (CSV, TSV, JSONL), globs, {0..9} ranges, or @file with "
        "one of these a line",
    )
    add("--output", metavar="URI", help="(required) folder of the dataset: a new one, or that of an earlier run")
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
        help=usual(
            "precision of the model; auto: bf16 with AMX and on GPUs from Ampere on, fp16 on older GPUs, else fp32"
        ),
    )
    add("--device", choices=DEVICES, help=usual("device of the model; auto: CUDA on a worker that has it, else CPU"))
    add("--taxonomy", dest="taxonomies", **_TAXONOMY)
    add(
        "--columns",
        action="extend",  # given twice, both count
        nargs="+",
        metavar="NAME[=FIELD][:TYPE]",
        help="fields of the input to keep as columns of their own",
    )
    add("--embedding_dtype", choices=list(EMBEDDING_DTYPES), help=usual("type of the stored embeddings"))
    add("--top_labels", type=int, metavar="N", help=usual("number of classes in the labels' column top"))
    add(
        "--batch_size",
        type=int,
        metavar="N",
        help=usual(
            "samples that go through the model together; 0: 32 on a CPU, 256 on a GPU; with 1 an embedding depends on "
            "its sample alone, to the last bit"
        ),
    )
    add(
        "--processes",
        type=int,
        metavar="N",
        help=usual(
            "processes on this machine, each with its own copy of the model; 0: one per GPU, or one per eight cores"
        ),
    )
    add(
        "--max_reject_fraction",
        type=float,
        metavar="F",
        help=usual("largest accepted fraction of rejects, 0 to 1, for images and for captions separately"),
    )
    add("--allow_damaged_shards", action="store_true", help="succeed even if a shard cannot be read to its end")
    add(
        "--retry_rejects",
        nargs="?",
        const="read",
        choices=RETRY_REJECTS[1:],
        help="embed units again that have rejects: read, if no value is given, for units in which something could not "
        "be read; all for units with any reject",
    )
    add("--overwrite", action="store_true", help="replace what was made with other settings or other classes")
    add("--limit", type=int, metavar="N", help=usual("embed only the first N samples of each unit; 0: all samples"))
    add(
        "--input_format",
        choices=INPUT_FORMATS,
        help=usual("read only this format; auto: every format in the input"),
    )
    add(
        "--exclude",
        action="append",
        metavar="GLOB",
        help="files and folders inside the input to leave out: a name such as '*_thumb.jpg' at any depth, or a path "
        "below the input such as 'old/*'; repeatable",
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
        help=usual(
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
        "--max_image_bytes",
        type=int,
        metavar="N",
        help=usual("limit of one encoded image in bytes; a larger one is not read and becomes a reject"),
    )
    add(
        "--max_image_pixels",
        type=int,
        metavar="N",
        help=usual(
            "limit of one image in pixels, both as stored and as resized before the crop; a larger one is not decoded "
            "and becomes a reject"
        ),
    )
    add(
        "--max_caption_bytes",
        type=int,
        metavar="N",
        help=usual("limit of one caption in bytes of UTF-8; a longer one is not read and becomes a reject"),
    )
    add(
        "--fast_decode",
        action="store_true",
        help="decode large JPEGs at a fraction of their size; this is faster and changes their embeddings slightly",
    )
    add(
        "--exif_orientation",
        choices=EXIF_ORIENTATIONS,
        help=usual(
            "what to do with the EXIF orientation of a picture; ignore: embed it as it is stored, like the published "
            "code; apply: turn it as a viewer shows it"
        ),
    )
    add(
        "--units",
        metavar="I/N",
        help="embed only share I of N, counted from 0: the units whose index in the plan modulo N is I; for array jobs",
    )
    add(
        "--report",
        nargs="?",
        const=PAGE,
        metavar="FILE",
        help="at the end write a page about the dataset, as pipelines.report does: an HTML file, "
        f"{PAGE} if no value is given",
    )
    add("--dry_run", action="store_true", help="print what was found and what would be done, then stop")
    _set_defaults(parser)
    return parser


def _set_defaults(parser: argparse.ArgumentParser) -> None:
    """Take the default of every flag from the field of the same name, so that each default is written once."""
    fields = [field for cls in (Settings, ReaderOptions, ClipSpec) for field in dataclasses.fields(cls)]
    flags = {action.dest for action in parser._actions}
    for field in fields:
        if field.name in flags and field.default is not dataclasses.MISSING:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            parser.set_defaults(**{field.name: default})


def label_parser() -> argparse.ArgumentParser:
    """Return the parser of `pipelines.label`."""
    parser = Parser(
        prog="python -m pipelines.label",
        description="Label a finished dataset with new taxonomies: zero-shot labels from its stored embeddings.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--input", metavar="URI", help="(required) folder of a dataset that pipelines.embed wrote")
    add("--taxonomy", dest="taxonomies", default=[], **_TAXONOMY)
    add("--model", help="checkpoint of the dataset, if it was moved since")
    add(
        "--top_labels",
        type=int,
        metavar="N",
        help="number of classes in the labels' column top (default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace labels of the same name that have other classes")
    add("--dry_run", action="store_true", help="print what would be labelled, then stop")
    _set_defaults(parser)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, PipelineOptions]:
    """Split a command line into our options and Beam's.

    Raises:
        UsageError: if a flag is unknown to both, which Beam itself would drop silently, or if it is Beam's and does
            nothing with the runner.
    """
    argv = list(argv)
    own, behind = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    options, rest = parser.parse_known_args(own)
    ours = {flag for action in parser._actions for flag in action.option_strings}
    idle = flags_without_effect() if _is_direct([*rest, *behind]) else set()
    _refuse_idle(rest, idle, ours)
    beams = beam_parser()
    _, unknown = beams.parse_known_args(rest)
    beams.parse_known_args(behind)  # check Beam's flags there too: for a wrong value Beam would exit with its usage
    if unknown:
        if not unknown[0].startswith("-"):
            raise UsageError(f"{unknown[0]!r} has no flag before it; write --input {unknown[0]} to read it")
        flag = unknown[0].split("=")[0]
        others = {flag for action in beams._actions for flag in action.option_strings} - idle
        hint = meant_instead(flag, ours) or nearest(flag, {*ours, *others})
        hint += "" if not hint else " " if hint.endswith("?") else "; "
        raise UsageError(
            f"{flag} is not a flag of this command or of Beam; {hint}--help lists ours; to pass a flag on unchecked, "
            "put it after --"
        )
    return options, PipelineOptions([*rest, *behind])


def _is_direct(argv: Sequence[str]) -> bool:
    """Return whether a command line names, or leaves to the default, a runner that works on this machine."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runner")
    return is_direct_runner(parser.parse_known_args(argv)[0].runner)


def _refuse_idle(argv: Sequence[str], idle: Collection[str], ours: Collection[str]) -> None:
    """Refuse flags of Beam's that the runner would ignore: whoever gave one meant something."""
    for flag in [word.split("=")[0] for word in argv]:
        if flag in idle:
            hint = meant_instead(flag, ours) or "omit it, or name that runner with --runner"
            raise UsageError(f"{flag} is a flag of Beam's other runners and does nothing with this one; {hint}")


def warnings_of(plan: RunPlan, options: PipelineOptions) -> list[str]:
    """Return one line for each common mistake that is not an error."""
    lines, device = [], plan.settings.model.device
    workers = max(workers_of(options), plan.settings.processes)
    if in_process(options):
        gpus = gpus_for(device)
        processes = count_processes(plan.settings.processes, gpus, len(plan.pending))
        if warning := too_many_processes(processes, gpus, cores()):
            lines.append(warning)
    if len(plan.pending) == 1 and workers > 1:
        lines.append(
            f"warning: there is one unit for {workers} workers, so one of them does all the work; split the input: a "
            "tar is one unit, and Parquet is cut into units at row groups, which should have at most 10,000 rows"
        )
    if device == "auto" and is_direct(options) and has_nvidia() and torch_is_cpu_only():
        lines.append("warning: this machine has an NVIDIA device, but torch is built without CUDA, so the CPU is used")
    return lines


def too_many_processes(processes: int, gpus: Sequence[str], machine_cores: int) -> str | None:
    """Return a warning if more processes are to embed than the machine has room for, else None."""
    most = _PROCESSES_PER_GPU * len(gpus) or machine_cores
    if processes <= most:
        return None
    room = f"{_PROCESSES_PER_GPU} for each GPU" if gpus else f"the {counted(machine_cores, 'core')} of this machine"
    return (
        f"warning: {processes} processes are more than {room}, so they take turns and only need more memory; give "
        f"--processes {most} or fewer, or omit the flag"
    )


def embed_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of a run for a parsed command line.

    Raises:
        ValueError: naming the first wrong setting in one sentence.
    """
    for flag, dest, hint in _REQUIRED:
        if not getattr(options, dest):
            raise UsageError(f"{flag} is missing{hint}")
    reader = _fill(ReaderOptions, vars(options))
    values = vars(options) | {"taxonomies": [Taxonomy.load(uri) for uri in options.taxonomies], "reader": reader}
    values |= {"model": _fill(ClipSpec, values)}
    return _fill(Settings, values)


def _fill(cls: type[_Record], values: Mapping[str, Any]) -> _Record:
    """Build a record from the values named like its fields; lists become tuples."""
    names = [field.name for field in dataclasses.fields(cls) if field.name in values]
    found: dict[str, Any] = {name: tuple(v) if isinstance(v := values[name], list) else v for name in names}
    return cls(**found)
