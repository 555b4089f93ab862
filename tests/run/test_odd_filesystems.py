"""File systems that lack operations, as CIFS, NFS, Lustre, exFAT and FUSE do: a library answers in their place."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT, files_of, make_tar

# The variable FAIL_<operation> holds the errno that the operation answers below the folder UNDER.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int fails(const char *operation, const char *path) {
  const char *under = getenv("UNDER"), *number = getenv(operation);
  if (!number || !under || strncmp(path, under, strlen(under))) return 0;
  errno = atoi(number);
  return 1;
}
static int fails_at(const char *operation, int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return fails(operation, path);
}
#define NEXT(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
int fsync(int fd) {
  struct stat s;
  int folder = !fstat(fd, &s) && S_ISDIR(s.st_mode);
  return fails_at(folder ? "FAIL_fsync_folder" : "FAIL_fsync_file", fd) ? -1 : NEXT("fsync", int)(fd);
}
int flock(int fd, int operation) { return fails_at("FAIL_flock", fd) ? -1 : NEXT("flock", int, int)(fd, operation); }
int chmod(const char *path, mode_t mode) {
  return fails("FAIL_chmod", path) ? -1 : NEXT("chmod", const char *, mode_t)(path, mode);
}
int rename(const char *old, const char *new) {
  struct stat s;
  int folder = !stat(old, &s) && S_ISDIR(s.st_mode);
  return folder && fails("FAIL_rename_folder", old) ? -1 : NEXT("rename", const char *, const char *)(old, new);
}
"""
NO_LOCKS = "warning: the file system of {} has no locks ({}), so two runs at once on it do not see each other; start one at a time"  # noqa: E501


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library, for LD_PRELOAD."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler for Linux, which makes the library that answers for the file system")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the C compiler does not make the library: {done.stderr[:200]}")
    return folder / "shim.so"


@pytest.fixture
def on_odd(shim, tmp_path):
    """Run Python where operations below `under`, by default `out`, fail with an errno; the finished process."""

    def run(*argv, under=tmp_path / "out", **fails):
        numbers = {f"FAIL_{name}": str(number) for name, number in fails.items()}
        environment = os.environ | {"LD_PRELOAD": str(shim), "UNDER": str(under), **numbers}
        command = [sys.executable, *map(str, argv)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=100)

    return run


def argv_of(tars, out, tiny_checkpoint):
    argv = ["-m", "pipelines.embed", "--input", *tars, "--output", out, "--model", tiny_checkpoint]
    return [*argv, "--precision=fp32"]


@pytest.fixture
def tars(tmp_path):
    return [make_tar(tmp_path / f"{i}.tar", 3, first=3 * i) for i in range(2)]


@pytest.mark.slow  # an interpreter with the library imports everything: ten seconds
def test_a_run_on_a_file_system_that_lacks_everything_gives_the_same_bytes(
    on_odd, tars, tiny_checkpoint, tmp_path, embed
):
    out = tmp_path / "out"
    odd = {"flock": errno.ENOLCK, "fsync_folder": errno.EINVAL, "chmod": errno.EPERM, "rename_folder": errno.EMFILE}
    done = on_odd(*argv_of(tars, out, tiny_checkpoint), **odd)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [NO_LOCKS.format(out, os.strerror(errno.ENOLCK))]
    embed(*tars, output=tmp_path / "calm")
    assert files_of(out) == files_of(tmp_path / "calm") and len(files_of(out)) == 4
    assert (out / "_SUCCESS").exists() and not (out / "_temporary").exists()
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(
    "operation",
    ["flock", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fsync_folder", "fsync_file"))],  # 4 s each
)
def test_a_disk_that_fails_is_no_file_system_that_lacks_something(operation, on_odd, tars, tiny_checkpoint, tmp_path):
    done = on_odd(*argv_of(tars, tmp_path / "out", tiny_checkpoint), **{operation: errno.EIO})
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert re.fullmatch(rf"error: {tmp_path}/out\S* cannot be used: Input/output error; .*\n", done.stderr)


WRITE = textwrap.dedent(
    """
    import sys
    from clip_transforms import storage
    from clip_transforms.run.run_folder import RunFolder
    with RunFolder(sys.argv[1], "29990101-000000-new") as folder, folder.alone():
        storage.write_bytes(storage.join(sys.argv[1], "run.json"), b"{}", folder.uri)
    """
)


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "ENOSYS", "EACCES", "EPERM", "EBADF"])
def test_a_folder_that_cannot_be_synced_is_passed_over(name, on_odd, tmp_path):
    done = on_odd("-c", WRITE, tmp_path / "out", fsync_folder=getattr(errno, name))
    assert (done.returncode, done.stderr) == (0, "")
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("run.json", "{}")]


@pytest.mark.parametrize("name", ["EPERM", "ENOTSUP", "ENOSYS"])
def test_a_mode_that_cannot_be_set_is_passed_over(name, on_odd, tmp_path):
    done = on_odd("-c", WRITE, tmp_path / "out", chmod=getattr(errno, name))
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "out" / "run.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["ENOSYS", "EACCES", "EXDEV"])
def test_a_folder_that_cannot_be_renamed_is_made_in_its_place(name, on_odd, tmp_path):
    done = on_odd("-c", WRITE, tmp_path / "out", rename_folder=getattr(errno, name))
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["ENOSYS", "ENOTSUP", "ENOLCK", "EINVAL", "EBADF"])
def test_without_locks_one_line_says_so_and_no_young_folder_is_taken_for_dead(name, on_odd, tmp_path):
    names = {"29990101-000000-perhaps-alive": True, "20200101-000000-old": False}
    for run in names:
        (tmp_path / "out" / "_temporary" / run).mkdir(parents=True)
        (tmp_path / "out" / "_temporary" / run / "lock").write_text("")
    done = on_odd("-c", WRITE, tmp_path / "out", flock=getattr(errno, name))
    sentence = NO_LOCKS.format(tmp_path / "out", os.strerror(getattr(errno, name))).removeprefix("warning: ")
    assert (done.returncode, done.stderr) == (0, f"{sentence}\n")
    assert {run: (tmp_path / "out" / "_temporary" / run).exists() for run in names} == names
    assert (tmp_path / "out" / "run.json").read_text() == "{}"


def test_a_lock_that_somebody_holds_is_no_missing_lock(on_odd, tmp_path):
    """CIFS answers EACCES where others answer EAGAIN."""
    held = tmp_path / "out" / "_temporary" / "20200101-000000-alive"
    held.mkdir(parents=True)
    (held / "lock").write_text("")
    code = f"from clip_transforms.run.run_folder import RunFolder as R; R({str(tmp_path / 'out')!r}, '29990101-0-new')"
    done = on_odd("-c", code, under=held, flock=errno.EACCES)
    assert (done.returncode, done.stderr) == (0, "") and held.exists()


@pytest.mark.parametrize("mode", [0o444, 0o000], ids=["readable", "unreadable"])
def test_the_lock_of_another_user_is_left_alone_for_a_week(mode):
    from clip_transforms.run.run_folder import RunFolder

    out = Path(tempfile.mkdtemp())  # not below tmp_path, which other users cannot enter
    names = {"29990101-000000-theirs": True, "20200101-000000-old": False}
    try:
        for run in names:
            (out / "_temporary" / run).mkdir(parents=True)
            (out / "_temporary" / run / "lock").write_text("")
            (out / "_temporary" / run / "lock").chmod(mode)
        for path in (out, *out.rglob("*")):
            if path.is_dir():
                path.chmod(0o777)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            RunFolder(str(out), "29990102-000000-ours").close()
        finally:
            os.seteuid(me)
        assert {run: (out / "_temporary" / run).exists() for run in names} == names
    finally:
        shutil.rmtree(out)


def test_a_lock_is_released_before_its_folder_is_removed(tmp_path, monkeypatch):
    """NFS and CIFS keep a file that is open, and its folder with it."""
    from clip_transforms.run import run_folder as module

    remove, held = module.remove_run_folder, []

    def watch(uri):
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        held.extend(link for link in links if os.path.lexists(link) and os.readlink(link).startswith(uri))
        remove(uri)

    monkeypatch.setattr(module, "remove_run_folder", watch)
    module.RunFolder(str(tmp_path), module.new_run_id()).close()
    assert held == [] and not (tmp_path / "_temporary").exists()


def test_a_part_reaches_a_folder_on_another_file_system(embed, tars, tmp_path):
    """As where `embeddings` is a link to a larger disk."""
    shared = "/dev/shm"
    if not os.path.isdir(shared) or os.stat(shared).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second file system to write to")
    other = os.path.join(shared, f"clip-transforms-{os.getpid()}")
    out = tmp_path / "out"
    embed(tars[0], output=out)
    try:
        shutil.move(out / "embeddings", other)
        (out / "embeddings").symlink_to(other)
        embed(*tars, output=out)
        embed(*tars, output=tmp_path / "calm")
        assert files_of(out) == files_of(tmp_path / "calm") and (out / "_SUCCESS").exists()
        assert sorted(os.listdir(other)) == sorted(os.listdir(tmp_path / "calm" / "embeddings"))
        assert len({os.stat(os.path.join(other, name)).st_mode for name in os.listdir(other)}) == 1
        assert not (out / "_temporary").exists()
    finally:
        shutil.rmtree(other, ignore_errors=True)
