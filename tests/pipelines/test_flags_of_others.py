"""Flags that a person guesses. Beam has many of them, for other runners; none is taken and then ignored."""

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.beam_options import beam_parser, flags_without_effect
from pipelines.command_line import UsageError
from pipelines.flags import embed_parser, label_parser
from pipelines.options import parse

PARSERS = {"embed": embed_parser, "label": label_parser}
IDLE = "is a flag of Beam's other runners and does nothing with this one; "
OMIT = "omit it, or name that runner with --runner"
NONE = "no flag is needed: the same command goes on and does what is missing"
DATAFLOW = ["--runner", "DataflowRunner"]


def refusal(command, *argv):
    with pytest.raises(UsageError) as raised:
        parse(PARSERS[command](), argv)
    return str(raised.value)


@pytest.mark.parametrize("command", PARSERS)
@pytest.mark.parametrize(
    "argv, hint",
    [
        (["--labels", "animals.txt"], "did you mean --taxonomy?"),
        (["--label=animals.txt"], "did you mean --taxonomy?"),
        (["--update"], NONE),
        (["--streaming"], OMIT),
        (["--project", "cats"], OMIT),
        (["--temp_location=gs://web/temp"], OMIT),
        (["--s3_endpoint_url", "http://localhost"], OMIT),
        (["--no_wait_until_finish"], OMIT),
        (["--flink_master", "x:1"], OMIT),
        (["--number_of_worker_harness_threads", "four"], OMIT),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_flag_that_this_runner_would_ignore_is_refused(argv, hint, command):
    flag = argv[0].split("=")[0]
    assert refusal(command, *argv) == f"{flag} {IDLE}{hint}"
    assert refusal(command, *argv, "--runner", "DirectRunner").startswith(f"{flag} {IDLE}")


@pytest.mark.parametrize(
    "flag, ours",
    [
        ("--classes", "--taxonomy"),
        ("--num_workers", "--processes"),
        ("--max_num_workers", "--processes"),
        ("--workers", "--processes"),
        ("--jobs", "--processes"),
        ("--threads", "--processes"),
        ("--gpu", "--device cuda"),
        ("--batch", "--batch_size"),
        ("--out", "--output"),
        ("--output-dir", "--output"),
        ("--dry-run", "--dry_run"),
    ],
)
def test_a_name_that_other_programs_use_leads_to_ours(flag, ours):
    assert f"did you mean {ours}?" in refusal("embed", flag, "4")


def test_a_hint_names_only_flags_of_the_command():
    for flag in ("--num_workers", "--gpu", "--batch", "--out"):
        assert "did you mean" not in refusal("label", flag, "4")
    assert "did you mean --taxonomy?" in refusal("label", "--classes", "4")
    assert NONE in refusal("embed", "--resume") and NONE in refusal("label", "--resume")


def test_a_misspelt_flag_leads_to_no_flag_that_would_be_refused():
    assert "did you mean --labels?" in refusal("embed", "--labls", *DATAFLOW)
    assert "--labels" not in refusal("embed", "--labls")


@pytest.mark.parametrize("command", PARSERS)
def test_with_another_runner_all_stay_accepted(command):
    argv = ["--labels", "a=b", "--num_workers=4", "--project", "cats", "--streaming"]
    found = parse(PARSERS[command](), [*argv, *DATAFLOW])[1].get_all_options()
    assert (found["labels"], found["num_workers"], found["project"]) == (["a=b"], 4, "cats")


def test_behind_two_dashes_nothing_is_refused_and_the_runner_counts():
    assert parse(embed_parser(), ["--", "--project", "cats"])[1].get_all_options()["project"] == "cats"
    assert parse(embed_parser(), ["--project", "cats", "--", *DATAFLOW])[1].get_all_options()["project"] == "cats"


def test_flags_that_this_runner_uses_are_taken():
    argv = ["--direct_num_workers=2", "--direct_running_mode=multi_processing", "--experiments=x"]
    argv += ["--profile_cpu", "--pickle_library=default", "--runtime_type_check", "--runner=FnApiRunner"]
    found = parse(embed_parser(), argv)[1].get_all_options()
    assert found["direct_num_workers"] == 2 and found["profile_cpu"] and found["runtime_type_check"]
    ours = {flag for make in PARSERS.values() for action in make()._actions for flag in action.option_strings}
    known = {flag for action in beam_parser()._actions for flag in action.option_strings}
    assert len(flags_without_effect()) > 80 and flags_without_effect() < known
    assert "--dry_run" in ours & flags_without_effect(), "ours wins"


def test_the_options_of_a_class_that_somebody_installed_are_taken():
    class Own(PipelineOptions):
        @classmethod
        def _add_argparse_args(cls, parser):
            parser.add_argument("--their_own", type=int)

    assert parse(embed_parser(), ["--their_own", "3"])[1].view_as(Own).their_own == 3
