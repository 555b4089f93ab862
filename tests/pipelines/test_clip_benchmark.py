"""CLIP_benchmark's own folders go from `embed` to `evaluate` with two commands, and give its numbers."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import picture, write_tar
from sklearn.metrics import balanced_accuracy_score
from threadpoolctl import threadpool_limits

from clip_transforms import Dataset, Taxonomy, clip, evaluate_embeddings
from pipelines import embed, evaluate

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")

CLASSES = ["red panda", "barn owl", "sea lion", "fire ant", "sand cat", "tree frog"]
TEMPLATES = ["a photo of a {c}.", "a bad photo of the {c}.", "itap of my {c}."]
IMAGES = 40


def pixels(model, seeds):
    return np.stack([clip.decode_image(picture(seed, format_="WEBP"), side=model.image_side) for seed in seeds])


def normalised(vectors):
    return torch.nn.functional.normalize(torch.as_tensor(vectors), dim=-1)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return clip.load(tiny_checkpoint, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """`<dataset>/classnames.txt` and so on, `<dataset>/<split>/nshards.txt` and `0.tar`, `1.tar`, as webdatasets."""
    root = tmp_path_factory.mktemp("benchmark") / "wds_animals"
    (root / "test").mkdir(parents=True)
    (root / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    (root / "test" / "nshards.txt").write_text("2\n")
    targets = np.random.default_rng(0).integers(0, 5, IMAGES)  # one class has no sample
    for tar in range(2):
        half = range(20 * tar, 20 * tar + 20)
        names = [(f"s{i:07d}", i) for i in half]
        write_tar(
            root / "test" / f"{tar}.tar",
            [
                m
                for n, i in names
                for m in ((f"{n}.cls", str(targets[i]).encode()), (f"{n}.webp", picture(i, format_="WEBP")))
            ],
        )
    return root, targets


@pytest.fixture(scope="module")
def embedded(folder, tiny_checkpoint, tmp_path_factory):
    root, _ = folder
    out = tmp_path_factory.mktemp("embedded") / "out"
    argv = ["--input", str(root / "test"), "--output", str(out), "--model", tiny_checkpoint, "--precision", "fp32"]
    assert embed.main([*argv, "--taxonomy", str(root), "--columns", "cls:int32"]) == 0
    return out


def zeroshot_weights(model, names, templates):
    """CLIP_benchmark's classifier: the normalised mean of normalised prompts."""
    columns = []
    for name in names:
        prompts = normalised(model.embed_captions([template.format(c=name) for template in templates]))
        columns.append(normalised(prompts.mean(0)))
    return torch.stack(columns, 1)


def numbers(logits, target):
    """CLIP_benchmark's metrics of zero-shot classification."""
    best = torch.topk(logits, 5, 1, True, True)[1]
    right = best == target[:, None]
    recall = balanced_accuracy_score(target, logits.argmax(1))
    return right[:, :1].float().sum().item() / len(target), right.any(1).float().sum().item() / len(target), recall


def shown(metrics):
    (found,) = metrics["zeroshot"]["taxonomies"].values()
    return found["acc1"], found["acc5"], found["mean_per_class_recall"]


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_a_folder_of_clip_benchmark_takes_two_commands_and_gives_its_numbers(folder, embedded, model, tmp_path):
    _, targets = folder
    assert evaluate.main(["--input", str(embedded), "--output", str(tmp_path / "e")]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    images = normalised(model.embed_images(pixels(model, range(IMAGES))))
    logits = 100.0 * images @ zeroshot_weights(model, CLASSES, TEMPLATES)
    assert shown(metrics) == pytest.approx(numbers(logits, torch.from_numpy(targets)), abs=1e-6)
    assert metrics["zeroshot"]["rows"]["scored"] == IMAGES


def test_labels_of_the_dataset_are_those_that_are_evaluated(embedded, tmp_path):
    evaluate_embeddings(embedded, tmp_path / "e", group_column="cls")
    table = Dataset.open(embedded).to_table(["cls", "wds_animals.label"], labels="wds_animals")
    rates = pq.read_table(tmp_path / "e" / "per_group.parquet").to_pylist()
    found = {
        (row["group"], row["class"]): row["hits"] for row in rates if row["metric"] == "label_rate" and row["hits"]
    }
    pairs = list(zip(map(str, table["cls"].to_pylist()), table["wds_animals.label"].to_pylist(), strict=True))
    assert found == {pair: pairs.count(pair) for pair in pairs}


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_classes_that_the_dataset_has_not_embedded_are_embedded_beside_the_output(folder, embedded, model, tmp_path):
    _, targets = folder
    before = sorted(path.name for path in embedded.rglob("*"))
    (tmp_path / "plain.txt").write_text("\n".join(CLASSES))
    asked = {"taxonomy": [str(tmp_path / "plain.txt"), "wds_animals"]}
    metrics = evaluate_embeddings(embedded, tmp_path / "e", **asked)
    images = normalised(model.embed_images(pixels(model, range(IMAGES))))
    logits = 100.0 * images @ zeroshot_weights(model, CLASSES, ["a photo of a {c}."])
    found = metrics["zeroshot"]["taxonomies"]
    plain = found["plain"]["acc1"], found["plain"]["acc5"], found["plain"]["mean_per_class_recall"]
    assert plain == pytest.approx(numbers(logits, torch.from_numpy(targets)), abs=1e-6)
    assert (tmp_path / "e" / "taxonomies" / "plain.parquet").exists() and [*found] == ["plain", "wds_animals"]
    assert sorted(path.name for path in embedded.rglob("*")) == before
    again = [Taxonomy.load(str(tmp_path / "plain.txt")), "wds_animals"]
    assert evaluate_embeddings(embedded, tmp_path / "f", taxonomy=again)["zeroshot"] == metrics["zeroshot"]


def test_a_retrieval_folder_with_several_captions_a_picture_gives_its_recalls(model, tiny_checkpoint, tmp_path):
    root, out = tmp_path / "wds_captions", tmp_path / "out"
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1\n")
    texts = [[f"number {i} of kind {j}" for j in range(1 + i % 3)] for i in range(16)]
    samples = [
        (f"s{i:07d}.{ext}", data)
        for i, lines in enumerate(texts)
        for ext, data in (("webp", picture(i, format_="WEBP")), ("txt", "\n".join(lines).encode()))
    ]
    write_tar(root / "test" / "0.tar", samples)
    argv = ["--input", str(root / "test"), "--output", str(out), "--model", tiny_checkpoint, "--precision", "fp32"]
    assert embed.main([*argv, "--captions", "all"]) == 0
    assert evaluate.main(["--input", str(out), "--output", str(tmp_path / "e")]) == 0
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())["retrieval"]
    captions = normalised(model.embed_captions([line for lines in texts for line in lines]))
    owners = torch.tensor([i for i, lines in enumerate(texts) for _ in lines])
    scores = captions @ normalised(model.embed_images(pixels(model, range(16)))).T
    positives = torch.zeros(scores.shape, dtype=torch.bool)
    positives[torch.arange(len(owners)), owners] = True
    for k in (1, 5, 10):
        for direction, of, right in (
            ("caption_to_image", scores, positives),
            ("image_to_caption", scores.T, positives.T),
        ):
            hits = right.gather(1, torch.topk(of, k, dim=1)[1]).sum(1) > 0
            assert found[direction][f"recall@{k}"] == pytest.approx(hits.float().mean().item(), abs=1e-6)


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1, "blas"):
        yield
