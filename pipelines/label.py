"""New taxonomies over a finished dataset: `python -m pipelines.label --input out --taxonomy new.json`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.label")

from collections.abc import Sequence

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.label_embeddings import LabelEmbeddings
from clip_transforms.labels.plan import LabelPlan, plan_labels
from clip_transforms.parts.counts import counted
from pipelines.command import DONE, FAILED
from pipelines.command_line import UsageError
from pipelines.flags import label_parser
from pipelines.launch import launch, make_pipeline
from pipelines.options import parse
from pipelines.terminal import say

_SHOWN = 10  # the most parts that --dry_run names


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line or the dataset is wrong; nothing was started or written then.
    """
    options, beam_options = parse(label_parser(), argv)
    if not options.input:
        raise UsageError("--input is missing: give the folder of a dataset that pipelines.embed wrote")
    pipeline = make_pipeline(beam_options)
    taxonomies = [Taxonomy.load(uri) for uri in options.taxonomies]
    model = ClipSpec(options.model) if options.model else None
    plan = plan_labels(options.input, taxonomies, model, options.top_labels, options.overwrite)
    names = ", ".join(f"labels/{taxonomy.name}" for taxonomy in taxonomies)
    if options.dry_run:
        print_plan(plan)
        return DONE
    if plan.stale and not launch(pipeline, LabelEmbeddings.of(plan)):
        return FAILED
    done, skipped = len(plan.stale), len(plan.parts) - len(plan.stale)
    say(f"{counted(done, 'part')} labelled, {skipped:,} skipped, in {plan.output} ({names})")
    if not plan.stale:
        say("nothing was left to do")
    return DONE


def print_plan(plan: LabelPlan) -> None:
    """Print what a run would do."""
    done = len(plan.parts) - len(plan.stale)
    say(f"{counted(len(plan.parts), 'part')}: {len(plan.stale):,} to label, {done:,} done")
    for part, taxonomies in sorted(plan.stale.items())[:_SHOWN]:
        say(f"  to label {part}  with {', '.join(taxonomies)}")
    if len(plan.stale) > _SHOWN:
        say(f"  … and {len(plan.stale) - _SHOWN:,} more")
    names = ", ".join(taxonomy.name for taxonomy in plan.taxonomies)
    say(f"dataset {plan.output}; taxonomies: {names}; nothing was written (--dry_run)")
