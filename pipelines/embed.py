"""Image–caption shards → CLIP embeddings, scores, labels and rejects: `python -m pipelines.embed --help`."""

from __future__ import annotations

from pipelines.command import run_command

if __name__ == "__main__":  # first: Beam takes a second to import, and Ctrl-C then must end in a sentence too
    run_command("pipelines.embed")

from collections.abc import Sequence

from clip_transforms.clip.model_spec import DEMO
from clip_transforms.embed_shards import EmbedShards
from clip_transforms.pages.page_file import check_page
from clip_transforms.parts.counts import counted
from clip_transforms.parts.manifest import read_run
from clip_transforms.report_embeddings import plan_report
from clip_transforms.run.beam import beam
from clip_transforms.run.plan import RunPlan, plan_run
from clip_transforms.run.turned import turned_in_run
from clip_transforms.workers.machine import check_device
from clip_transforms.workers.runner import check_processes, in_process, is_direct
from pipelines.closing_lines import closing_lines
from pipelines.command import DONE, FAILED, INCOMPLETE
from pipelines.flags import embed_parser
from pipelines.launch import launch, make_pipeline
from pipelines.options import embed_settings, parse, warnings_of
from pipelines.progress import progress_bar
from pipelines.report import write_page
from pipelines.terminal import complain, say


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: if the command line or the existing output is wrong. Nothing was started or written then.
    """
    options, beam_options = parse(embed_parser(), argv)
    settings = embed_settings(options)
    pipeline = make_pipeline(beam_options)
    check_processes(settings.processes, settings.feeders, beam_options)
    if is_direct(beam_options):
        check_device(settings.model.device)
    plan = plan_run(settings)
    places = [plan.places.line] if in_process(beam_options) else []
    for line in [*plan.lines, *filter(None, places), *turned_in_run(plan), *warnings_of(plan, beam_options)]:
        say(line)
    if settings.model.model == DEMO:
        say(
            "note: the demo model knows only drawings like those of `make demo` and their words; for photos use "
            "--model ViT-B/32"
        )
    if options.report:
        check_report(options.report, plan)
    if options.dry_run:
        print_plan(plan)
        return DONE
    if is_direct(beam_options):  # workers elsewhere have their own caches
        plan.fetch_model()
    with progress_bar(plan, in_process(beam_options)):
        transform = EmbedShards.of(plan, ["python", "-m", "pipelines.embed", *argv])
        succeeded = launch(pipeline, transform)
    if not succeeded:
        return FAILED
    result = read_run(plan.settings.output, transform.run)  # not run.json: another run may have ended meanwhile
    for line in closing_lines(result, plan.settings.output):
        say(line)
    if options.report and not write_report(options.report, plan, make_pipeline(beam_options)):
        return FAILED
    return INCOMPLETE if result["problems"] else DONE


def check_report(page: str, plan: RunPlan) -> None:
    """Refuse a page that could not be written at the end.

    Raises:
        ValueError: or one of its subclasses, in one sentence.
    """
    check_page(page, "--report", plan.settings.output, [planned.unit.shard for planned in plan.units], overwrite=False)


def write_report(page: str, plan: RunPlan, pipeline: beam.Pipeline) -> bool:
    """Write a page about the dataset, and return whether it was written; what hinders it goes to stderr."""
    try:
        report = plan_report(plan.settings.output, page, allow_uri=plan.settings.reader.allow_uri)
        return write_page(report, pipeline) == DONE
    except ValueError as error:  # such as a dataset in which nothing could be embedded
        complain(f"there is no report: {error}")
        return False


def print_plan(plan: RunPlan) -> None:
    """Print what a run would do."""
    megabytes = sum(unit.num_bytes for unit in plan.pending) / 1e6
    say(
        f"{counted(len(plan.units), 'unit')}, each to become a part: {len(plan.pending):,} to embed "
        f"({megabytes:,.1f} MB), {len(plan.units) - len(plan.pending):,} done, {plan.unlabelled:,} of these to label"
    )
    for planned in plan.units[:10]:
        state = "to embed" if not planned.is_committed else "to label" if planned.labels else "done"
        say(f"  {state:8} {planned.unit.part}  from {planned.unit.shard}")
    if len(plan.units) > 10:
        say(f"  … and {len(plan.units) - 10:,} more")
    taxonomies = ", ".join(taxonomy.name for taxonomy in plan.settings.taxonomies) or "none"
    if plan.replaces:
        say(f"--overwrite: the dataset in {plan.settings.output} was made with other settings and would be replaced")
    say(f"output {plan.settings.output}; taxonomies: {taxonomies}; nothing was written (--dry_run)")
