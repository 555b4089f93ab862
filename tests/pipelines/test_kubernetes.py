"""docs/kubernetes.yaml is a valid Job by the schemas of three Kubernetes versions, and its command is one of ours."""

import copy
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from clip_transforms.clip import downloads
from clip_transforms.clip.recognition import CheckpointError
from pipelines.flags import embed_parser
from pipelines.options import embed_settings, parse

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
yaml = pytest.importorskip("yaml", reason="needs kubernetes-validate, which brings PyYAML")
VERSIONS = ("1.29", "1.31", "1.37")  # earlier schemas demand `onPodConditions` in rules that have none


@pytest.fixture
def job():
    return yaml.safe_load(Path(ROOT, "docs", "kubernetes.yaml").read_text())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifest_is_valid(version, job):
    kubernetes_validate.validate(job, version, strict=True)


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "completions"), "eight"),
        (("spec", "completionsMode"), "Indexed"),
        (("spec", "template", "spec", "containers", 0, "args"), "--input"),
        (("spec", "podFailurePolicy", "rules", 0, "onExitCodes", "values"), "2"),
    ],
    ids=lambda part: str(part[-1]) if isinstance(part, tuple) else "",
)
def test_the_schema_finds_a_mistake(path, value, job):
    place = broken = copy.deepcopy(job)
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_every_pod_does_a_share_of_its_own(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "pipelines.embed"]
    shares = set()
    for index in range(job["spec"]["completions"]):
        argv = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in container["args"]]
        options, _ = parse(embed_parser(), argv)
        shares.add(embed_settings(options).share)
    assert job["spec"]["completionMode"] == "Indexed"
    assert shares == {(index, len(shares)) for index in range(len(shares))} and len(shares) == 8


def test_a_model_and_parts_are_written_to_a_volume_also_by_a_user_without_a_home(job, monkeypatch):
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (scratch,) = (mounted[volume["name"]] for volume in pod["volumes"] if "emptyDir" in volume)
    for name in ("HOME", "XDG_CACHE_HOME", "CLIP_CACHE", "TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user whom the image does not know
    with pytest.raises(CheckpointError, match="no home folder"):
        downloads.cache_folder()
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    monkeypatch.setattr(tempfile, "tempdir", None)  # else it is the folder that this process has found before
    for folder in (downloads.cache_folder(), Path(tempfile.gettempdir())):
        assert folder.is_relative_to(scratch)
