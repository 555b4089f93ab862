"""The array jobs of the documents on a real Slurm: two nodes on loopback, of Debian's packages slurm-wlm and munge."""

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, files_of, make_tar
from servers import daemon, free_port, wait_for

from clip_transforms import ClipSpec, embed_shards

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
LACKING = [name for name in PROGRAMS if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,  # a minute each: a scheduler, and four commands in processes of their own
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(LACKING), reason=f"needs Debian's packages slurm-wlm and munge: no {', '.join(LACKING)}"),
]
README, RUNNERS = (Path(ROOT, name).read_text() for name in ("README.md", "docs/runners.md"))
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A task that is requeued waits until its credential has expired.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
KillWait=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 Gres=gpu:1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n1,n2 Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=2 MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def cluster():
    """The environment in which the commands of Slurm find a cluster of two nodes, each with a core and a "GPU"."""
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)  # not below pytest's: paths of sockets must be short
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
        argv = [f"--key-file={key}", *(f"--{flag}={folder / file}" for flag, file in files.items())]
        ports = [free_port() for _ in range(3)]
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(folder=folder, host=host, ports=ports, user=getpass.getuser())
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        places = os.pathsep.join([str(Path(ROOT, "tests", "hooks")), ROOT])
        env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "PYTHONPATH": places}
        env["CLIP_TRANSFORMS_TEST_SLOW_COMMITS"] = "1"
        daemons.enter_context(daemon(folder / "munged.out", "munged", "--foreground", "--force", *argv, env=env))
        wait_for((folder / "munge.sock").exists, 20)
        daemons.enter_context(daemon(folder / "slurmctld.out", "slurmctld", "-D", env=env))
        for node in ("n1", "n2"):
            (folder / f"spool-{node}").mkdir()
            daemons.enter_context(daemon(folder / f"{node}.out", "slurmd", "-D", "-N", node, env=env))
        wait_for(lambda: run(env, "sinfo", "-h", "-N", "-p", "all", "-o", "%T").split() == ["idle", "idle"], 60)
        yield env


@pytest.fixture
def workplace(tmp_path):
    (tmp_path / "web").mkdir()
    for i in range(12):
        make_tar(tmp_path / "web" / f"{i:02d}.tar", 5, first=5 * i)
    embed_shards(tmp_path / "web" / "*.tar", tmp_path / "one", ClipSpec("demo"))
    return tmp_path


def run(env, *argv, cwd=None):
    done = subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


def as_written(text):
    """What a document says, with the model of the tests, and an output in which parts come slowly."""
    return text.replace("ViT-B/32", "demo").replace("out-array", "slow")


def states(env, job):
    """Task → its state, such as RUNNING; its id, unless it is a task of an array."""
    lines = run(env, "scontrol", "--oneliner", "show", "job", job).splitlines()
    fields = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines)
    return {f.get("ArrayTaskId", f["JobId"]): f["JobState"] for f in fields}


def processes_of(env, job, task, program=b"pipelines.embed"):
    """The processes of a task that run a program, which is the end of one of their arguments."""
    found = []
    marks = {f"SLURM_ARRAY_JOB_ID={job}", f"SLURM_ARRAY_TASK_ID={task}", f"SLURM_CONF={env['SLURM_CONF']}"}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_it = marks <= set((folder / "environ").read_bytes().decode(errors="replace").split("\0"))
            argv = (folder / "cmdline").read_bytes().split(b"\0")
            if of_it and any(word.endswith(program) for word in argv):
                found.append(int(folder.name))
    return found


def parts_of(out, task):
    """Parts of the units of a share of four."""
    return [path for i in range(task, 12, 4) for path in out.glob(f"embeddings/{i:02d}-*.parquet")]


def said(folder, task):
    return "".join(path.read_text() for path in folder.glob(f"slurm-*_{task}.out"))


def test_a_task_of_the_readmes_array_job_is_killed_and_requeued(cluster, workplace):
    (line,) = re.findall(r"^sbatch .*$", README, re.MULTILINE)
    job = run(cluster, "bash", "-c", as_written(line), cwd=workplace).split()[-1]
    out, success = workplace / "slow", workplace / "slow" / "_SUCCESS"
    wait_for(lambda: parts_of(out, 1), 120)
    assert len(parts_of(out, 1)) < 3, "it was to be killed in its middle"
    for pid in processes_of(cluster, job, 1):
        os.kill(pid, signal.SIGKILL)
    ended = {"0": "COMPLETED", "1": "FAILED", "2": "COMPLETED", "3": "COMPLETED"}
    wait_for(lambda: states(cluster, job) == ended, 120)
    assert not success.exists() and len(parts_of(out, 1)) < 3
    run(cluster, "scontrol", "requeue", f"{job}_1")
    wait_for(success.exists, 120)
    written = success.stat()
    wait_for(lambda: states(cluster, job)["1"] == "COMPLETED", 60)
    assert success.stat() == written
    assert [task for task in range(4) if "and with it the whole plan, 12 units" in said(workplace, task)] == [1]
    assert files_of(out) == files_of(workplace / "one") and not (out / "_temporary").exists()
    assert json.loads((out / "run.json").read_text())["dataset"]["samples"] == 60


def time_is_up(env, job):
    """Do what `--signal=B:USR1@120` does two minutes before the limit."""
    (shell,) = processes_of(env, job, 0, b"slurm_script")
    os.kill(shell, signal.SIGUSR1)


def preempted(env, job):
    """Submit jobs for both nodes that go before all others."""
    run(env, "sbatch", "--partition=urgent", "--array=0-1", "--output=/dev/null", "--wrap=true")


@pytest.mark.parametrize("interrupt", [time_is_up, preempted])
def test_the_script_of_the_documents_goes_on_after_an_interruption(interrupt, cluster, workplace):
    (block,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", RUNNERS, re.DOTALL)
    (workplace / "embed.sbatch").write_text(as_written(block))
    job = run(cluster, "sbatch", "--parsable", "embed.sbatch", cwd=workplace).strip()
    out = workplace / "slow"
    wait_for(lambda: parts_of(out, 0), 120)
    interrupt(cluster, job)
    wait_for(lambda: states(cluster, job) == {str(task): "COMPLETED" for task in range(4)}, 240)
    assert run(cluster, "scontrol", "show", "job", f"{job}_0").count("Restarts=1") == 1
    assert "ended by SIGTERM; what is committed stays" in said(workplace, 0)
    assert files_of(out) == files_of(workplace / "one") and (out / "_SUCCESS").exists()


def test_one_job_of_several_tasks_with_a_gpu_each(cluster, workplace):
    (line,) = re.findall(r"^(srun (?:.*\\\n)*.*)$", RUNNERS, re.MULTILINE)
    line = as_written(line).replace("--ntasks=8", "--ntasks=2")
    done = run(cluster, "bash", "-c", line, cwd=workplace)
    assert "share 0/2 is done" in done and "share 1/2 is done" in done
    out = workplace / "slow"
    assert files_of(out) == files_of(workplace / "one") and (out / "_SUCCESS").exists()
