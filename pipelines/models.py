"""List the known models, or describe a checkpoint: `python -m pipelines.models`, `… --check FILE`."""

from __future__ import annotations

from pipelines.command import run_light_command

if __name__ == "__main__":  # first, as in the other commands
    run_light_command("pipelines.models")

from collections.abc import Sequence

from clip_transforms.clip.architectures import PUBLISHED
from clip_transforms.clip.description import describe
from clip_transforms.clip.downloads import cache_folder, cached
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import CheckpointError
from clip_transforms.clip.tensor_shapes import parameters
from pipelines.command import DONE
from pipelines.command_line import CommandParser, UsageError, add_quiet
from pipelines.terminal import be_quiet, say


def main(argv: Sequence[str]) -> int:
    """Print the table of models or the description of a checkpoint, and return the exit code.

    Raises:
        ValueError: if the command line is wrong, or the file is not a checkpoint.
    """
    options = models_parser().parse_args(argv)
    if options.quiet and options.check is None:
        raise UsageError("--quiet leaves nothing of the table of models; omit it, or give --check FILE")
    be_quiet(options.quiet)
    for line in check_lines(options.check, options.checkpoint_key) if options.check is not None else table_lines():
        say(line)
    return DONE


def models_parser() -> CommandParser:
    """Return the parser of `pipelines.models`."""
    parser = CommandParser(
        "models",
        "List the models that are known by name, or describe a checkpoint. This downloads nothing.",
        ["", "--check demo"],
        "Exit codes: 0: done. 2: the command line is wrong, or the file is no checkpoint that embed reads.",
    )
    add = parser.to("model")
    add("--check", metavar="FILE", help="checkpoint to describe: path or URI of a file or folder, or demo")
    add(
        "--checkpoint_key",
        metavar="PREFIX",
        help="start of the names of the weights, if the checkpoint holds several models or a larger one",
    )
    add_quiet(parser)
    return parser


def table_lines() -> list[str]:
    """Return the table of known models, one line each."""
    lines = [f"{'name':16}{'image side':>11}{'d':>7}{'vision':>32}{'text width':>12}{'parameters':>13}  cached"]
    for name, known in PUBLISHED.items():
        a = known.architecture
        layers = (
            f"{a.vision_layers} layers" if isinstance(a.vision_layers, int) else "-".join(map(str, a.vision_layers))
        )
        vision = f"{'ResNet' if a.is_resnet else f'ViT/{a.patch_size}'} {a.vision_width} wide, {layers}"
        lines.append(
            f"{name:16}{a.image_side:>11}{a.embed_dim:>7}{vision:>32}{a.text_width:>12}"
            f"{parameters(a) / 1e6:>11.1f} M  {'yes' if cached(name) else 'no'}"
        )
    return [*lines, f"cache: {cache_folder()}; demo comes with this package; --check FILE describes a checkpoint"]


def check_lines(model: str, key: str | None = None) -> list[str]:
    """Return the description of a checkpoint, and how it was recognised."""
    spec = ClipSpec(model, checkpoint_key=key)
    path = cached(spec.published_name) if spec.published_name else None
    if spec.published_name and path is None:
        raise CheckpointError(
            f"--check is {model}, but that model is not in the cache ({cache_folder()}); a run downloads it, or give a "
            "file"
        )
    checkpoint = ClipSpec(str(path) if path else model, checkpoint_key=key).recognise()
    what, facts = describe(checkpoint)
    return [what, *(f"{name:13}  {value}" for name, value in facts)]
