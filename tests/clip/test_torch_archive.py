"""Torch archives, honest and hostile: no code in them is run, and no size is trusted."""

import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile

import pytest
import torch
from conftest import published_model

from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import CheckpointError
from clip_transforms.clip.torch_archive import Archive, ArchiveError
from clip_transforms.clip.weights_file import read_weights_file
from clip_transforms.run.inspect_path import inspect_path


def script_of(kind, path):
    """A TorchScript archive like the published ones: traced from the published class, in half precision."""
    model = published_model(kind, 0)
    side = model.visual.input_resolution
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, side, side), torch.zeros(1, 77, dtype=torch.long))
        traced = torch.jit.trace(model, example, check_trace=False)
        torch.jit.save(traced, path)
    return model


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_every_weight_in_a_script_equals_that_of_the_model(kind, tmp_path):
    theirs = script_of(kind, tmp_path / "script.pt").state_dict()
    checkpoint = ClipSpec(str(tmp_path / "script.pt"), "quick_gelu").resolve()
    assert "TorchScript" in checkpoint.recognised_by
    assert "TorchScript" in dict(inspect_path(str(tmp_path / "script.pt")).facts)["recognised by"]
    ours = load(str(tmp_path / "script.pt"), "cpu", activation="quick_gelu", precision="fp32").state_dict()
    torch.save(theirs, tmp_path / "state.pt")
    same = load(str(tmp_path / "state.pt"), "cpu", activation="quick_gelu", precision="fp32").state_dict()
    assert ours.keys() == same.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, same[name]), name
    kept = [name for name in ours if torch.equal(ours[name], theirs.get(name.removeprefix("text."), torch.empty(0)))]
    assert len(kept) > len(ours) / 3, "weights that are not folded stay the same"


class Reduce:
    """An object whose pickle is a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def archive(path, content=None, members=(), root="archive", **options):
    """A zip file like torch's, with the given pickle and members."""
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr(f"{root}/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        for name, data in members:
            file.writestr(name, data)
    return path


def tensor_pickle(storage="FloatStorage", key="0", count=4, offset=0, shape=(4,), stride=(1,), name="weight"):
    """The pickle of {name: tensor} in torch's form, with any numbers."""
    out = io.BytesIO()

    class Storage:
        pass

    class Writer(pickle._Pickler):
        def persistent_id(self, obj):
            return ("storage", Global("torch", storage), key, "cpu", count) if isinstance(obj, Storage) else None

    class Global:
        def __init__(self, module, name):
            self.module, self.name = module, name

    def save_global(self, obj):
        self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")

    Writer.dispatch = Writer.dispatch | {Global: save_global}

    class Tensor:
        pass

    def save_tensor(self, obj):
        save_global(self, Global("torch._utils", "_rebuild_tensor_v2"))
        self.save((Storage(), offset, shape, stride, False, {}))
        self.write(pickle.REDUCE)

    Writer.dispatch[Tensor] = save_tensor
    Writer(out, 2).dump({name: Tensor()})
    return out.getvalue()


def test_the_honest_ones_of_the_tests_own_archives_are_read(tmp_path):
    data = struct.pack("<4f", 1, 2, 3, 4)
    path = archive(tmp_path / "a.pt", tensor_pickle(), [("archive/data/0", data)])
    with open(path, "rb") as file:
        tensor = Archive(file).tensors["weight"]
        file.seek(tensor.start)
        assert file.read(16) == data and tensor.shape == (4,)


@pytest.mark.parametrize(
    "numbers",
    [
        dict(count=1 << 40),
        dict(shape=(1 << 40,)),
        dict(shape=(3, 3), stride=(3, 1)),
        dict(offset=2),
        dict(offset=-1),
        dict(shape=(-4,)),
        dict(stride=(-1,)),
        dict(stride=(1 << 62,)),
        dict(shape=(2, 2), stride=(1,)),
        dict(shape=("4",)),
        dict(shape=(4.0,)),
        dict(storage="DoubleStorage"),
        dict(key="1"),
        dict(key="../0"),
        dict(key="/etc/passwd"),
    ],
    ids=str,
)
def test_sizes_that_lie_are_refused(numbers, tmp_path):
    path = archive(tmp_path / "a.pt", tensor_pickle(**numbers), [("archive/data/0", b"\0" * 16)])
    with open(path, "rb") as file, pytest.raises(ArchiveError):
        Archive(file)


def test_a_tensor_of_a_dtype_that_weights_do_not_have_is_passed_over(tmp_path):
    path = archive(tmp_path / "a.pt", tensor_pickle(storage="ComplexDoubleStorage", count=1 << 40))
    with open(path, "rb") as file:
        found = Archive(file)
    assert found.tensors == {}
    assert list(found.passed_over.values()) == [
        "weight is a tensor of torch.ComplexDoubleStorage, but weights must be floating point of 16, 32 or 64 bits"
    ]


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch RAN"),
        (eval, "open('RAN', 'w')"),
        (exec, "open('RAN', 'w')"),
        (getattr, "os", "system"),
        (io.open, "RAN", "w"),
        (__import__, "antigravity"),
        (torch.jit.load, "RAN"),
        (torch.load, "RAN"),
    ],
    ids=lambda call: call[0].__name__,
)
@pytest.mark.parametrize("script", [False, True], ids=["state dict", "script"])
def test_code_in_a_pickle_is_not_run(call, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = [("archive/constants.pkl", b"")] if script else []
    archive(tmp_path / "a.pt", {"visual.proj": Reduce(*call)}, members)
    with pytest.raises(CheckpointError, match="nothing was run"):
        load(str(tmp_path / "a.pt"), "cpu", activation="gelu")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_class_of_an_archive_becomes_a_bag_without_behaviour(tmp_path):
    pickled = b"\x80\x02c__torch__.posix\nsystem\nX\x09\x00\x00\x00touch RAN\x85R."
    with open(archive(tmp_path / "a.pt", pickled), "rb") as file:
        assert Archive(file).tensors == {}
    assert not (tmp_path / "RAN").exists()


def test_a_bag_whose_state_is_never_set_is_empty(tmp_path):
    pickled = b"\x80\x02}X\x01\x00\x00\x00ac__torch__.posix\nsystem\n)\x81s."  # NEWOBJ, without a call of __init__
    with open(archive(tmp_path / "a.pt", pickled), "rb") as file:
        assert Archive(file).tensors == {}


def test_dicts_that_contain_themselves_are_refused(tmp_path):
    knot = {}
    knot |= {"a": knot, "b": knot}
    with open(archive(tmp_path / "a.pt", knot), "rb") as file, pytest.raises(ArchiveError, match="1,000,000 entries"):
        Archive(file)


def test_a_pickle_that_asks_for_very_many_names_is_refused(tmp_path):
    pickled = b"\x80\x02(" + b"".join(b"cos\na%d\n" % i for i in range(20_000)) + b"l."
    with (
        open(archive(tmp_path / "a.pt", pickled), "rb") as file,
        pytest.raises(ArchiveError, match="10,000 names that"),
    ):
        Archive(file)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = archive(tmp_path / "a.pt", b"\0" * (200 << 20), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with (
        open(path, "rb") as file,
        pytest.raises(ArchiveError, match="209,715,200 bytes, which is more than any CLIP needs"),
    ):
        read_weights_file(file)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_a_compressed_storage_is_refused(tmp_path):
    members = [("archive/data/0", b"\0" * (1 << 20))]
    path = archive(tmp_path / "a.pt", tensor_pickle(), members, compression=zipfile.ZIP_DEFLATED)
    with open(path, "rb") as file, pytest.raises(ArchiveError, match="is compressed"):
        Archive(file)


@pytest.mark.parametrize("root", ["..", "../..", "/etc", "a/../.."])
def test_a_path_that_climbs_out_leads_nowhere(root, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0").write_bytes(b"secret of the disk..")
    monkeypatch.chdir(tmp_path / "inner")
    path = archive(tmp_path / "inner" / "a.pt", tensor_pickle(), root=root)
    with open(path, "rb") as file, pytest.raises(ArchiveError):
        Archive(file)


@pytest.mark.parametrize("edit", ["header", "size"], ids=["a header elsewhere", "a size beyond the end"])
def test_a_directory_that_lies_about_a_member_is_refused(edit, tmp_path):
    path = archive(tmp_path / "a.pt", tensor_pickle(count=1 << 20, shape=(1 << 20,)), [("archive/data/0", b"\0" * 16)])
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # of data/0, the last
    if edit == "header":
        struct.pack_into("<L", data, entry + 42, 5)
    struct.pack_into("<2L", data, entry + 20, 1 << 22, 1 << 22)
    path.write_bytes(data)
    with open(path, "rb") as file, pytest.raises(ArchiveError, match="damaged"):
        Archive(file)


def test_a_truncated_script_is_refused_in_one_sentence(tmp_path):
    script_of("vit", tmp_path / "script.pt")
    data = (tmp_path / "script.pt").read_bytes()
    for share in (0.001, 0.3, 0.9, 0.999):
        (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match="damaged"):
            ClipSpec(str(tmp_path / "cut.pt"), "gelu").resolve()


def test_mutated_archives_are_read_or_refused_in_one_sentence(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    honest = archive(tmp_path / "a.pt", tensor_pickle(), [("archive/data/0", b"\0" * 16)]).read_bytes()
    refused = 0
    for _ in range(500):
        data = bytearray(honest)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        try:
            read_weights_file(io.BytesIO(bytes(data)))
        except ArchiveError:
            refused += 1
    assert refused > 100
