"""Launchers: commands, manifests and scripts, with fake clouds in place of real ones."""

import contextlib
import importlib
import math
import multiprocessing
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import children
import pytest
import yaml

from flowley_jax.cli import parse_flags
from flowley_jax.errors import FlowleyError
from launch import gke, slurm
from launch.commands import CommandError, run, show
from launch.job import Job
from launch.queued import STATUS, SliceRequest, setup_script, start_script, status_script
from launch.skypilot import sky_task
from launch.slices import GENERATIONS, find_slice

ROOT = Path(__file__).parents[2]
JOB = Job(
    config="configs/vggsound.py:base,v5e-16",
    workdir="/mnt/flowley/runs/it's one",
    overrides=("--config.train.steps=1000",),
    repository="https://example.org/flowley-jax.git",
)
REQUEST = SliceRequest(
    name="run-1", project="p", zone="us-west4-a", accelerator="v5litepod-16", spot=True, bucket="gs://b"
)
COMMAND = [
    "python",
    "-m",
    "flowley_jax.train",
    "--config=configs/vggsound.py:base,v5e-16",
    "--workdir=/mnt/flowley/runs/it's one",
    "--config.train.steps=1000",
]
COMMON = (
    "--name=run-1",
    "--workdir=/data/runs/one",
    "--set=--config.train.steps=7",
    "--set=--config.data.records=/data/records",
)


def _shellcheck(script):
    result = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), "--shell=bash", "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout


# Importing JAX takes seconds. It is imported once, by the process from which all programs are forked.
PROGRAMS = multiprocessing.get_context("forkserver")
PROGRAMS.set_forkserver_preload(["launch.check"])


def _run_program(module, flags, environment, folder):
    """Run a module as a program, in a child process, with its output in two files of a folder."""
    os.chdir(ROOT)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
    # Imported by this file already, it would warn about being run twice.
    sys.modules.pop(module, None)
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _cli(module, *flags, **environment):
    with tempfile.TemporaryDirectory() as folder:
        process = PROGRAMS.Process(target=_run_program, args=(module, flags, environment, folder))
        process.start()
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
            process.join()
        printed = {name: Path(folder, name).read_text() for name in ("stdout", "stderr")}
    return types.SimpleNamespace(returncode=process.exitcode, **printed)


def test_a_slice_name_gives_hosts_and_topology():
    names = ("v5litepod-16", "v5litepod-256", "v5p-64", "v6e-16", "v4-8")
    slices = {name: find_slice(name) for name in names}
    assert {name: (slice_.chips, slice_.hosts, slice_.topology) for name, slice_ in slices.items()} == {
        "v5litepod-16": (16, 4, "4x4"),
        "v5litepod-256": (256, 64, "16x16"),
        "v5p-64": (32, 8, "2x4x4"),
        "v6e-16": (16, 4, "4x4"),
        "v4-8": (4, 1, "2x2x1"),
    }


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ("h100-8", "must be one of v4, v5litepod"),
        ("v5litepod-3", "must be a slice of whole hosts"),
        ("v5p", "must be one"),
    ],
)
def test_unknown_slices_are_rejected(accelerator, message):
    with pytest.raises(FlowleyError, match=message):
        find_slice(accelerator)


def test_every_topology_has_the_right_number_of_chips():
    for name, generation in GENERATIONS.items():
        for chips in (4, 8, 16, 32, 64, 128, 256):
            slice_ = find_slice(f"{name}-{chips * generation.cores}")
            sizes = [int(size) for size in slice_.topology.split("x")]
            assert len(sizes) == generation.dimensions
            assert math.prod(sizes) == chips


def test_the_request_names_slice_runtime_and_price():
    assert REQUEST.create_command() == [
        *(
            "gcloud",
            "compute",
            "tpus",
            "queued-resources",
            "create",
            "run-1",
            "--project=p",
            "--zone=us-west4-a",
            "--quiet",
        ),
        *(
            "--node-id=run-1",
            "--accelerator-type=v5litepod-16",
            "--runtime-version=v2-alpha-tpuv5-lite",
            "--spot",
        ),
    ]
    assert REQUEST.delete_command()[-2:] == ["--quiet", "--force"]


@pytest.mark.parametrize("bucket", ["", "gs://b"])
def test_scripts_for_machines_pass_shellcheck(bucket):
    request = SliceRequest(name="a", project="p", zone="z", accelerator="v6e-16", bucket=bucket)
    for script in (setup_script(JOB, request), start_script(JOB), status_script(JOB)):
        _shellcheck(script)


def test_machine_scripts_start_the_training_and_report_its_exit_code(tmp_path):
    """Run the scripts with a fake training that ends once the file `go` exists."""
    home = tmp_path / "home"
    (home / "flowley/venv/bin").mkdir(parents=True)
    (home / "flowley/code").mkdir()
    workdir = tmp_path / "runs/it's one"
    for step in (9, 10, 200):
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    (workdir / "checkpoints" / "300.orbax-checkpoint-tmp").mkdir()
    job = Job(config="c.py", workdir=str(workdir), overrides=("--config.data.records=a b",))
    python = home / "flowley/venv/bin/python"
    wait = 'for _ in {1..600}; do [ -f "$HOME/go" ] && exit 75; sleep 0.05; done'
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@"\n{wait}\nexit 1\n')
    python.chmod(0o755)

    def sh(script):
        env = {**os.environ, "HOME": str(home)}
        return subprocess.run(
            ["bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert sh(status_script(job)).split() == [STATUS, "none", "200"]
    sh(start_script(job))
    assert sh(status_script(job)).split() == [STATUS, "running", "200"]
    (home / "go").touch()
    assert int((home / "flowley/pid").read_text()) > 0
    deadline = time.monotonic() + 30
    while not (home / "flowley/exit").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sh(status_script(job)).split() == [STATUS, "75", "200"]
    # A status file that a full disk left empty says nothing.
    (home / "flowley/exit").write_text("")
    assert sh(status_script(job)).split() == [STATUS, "none", "200"]
    words = (home / "flowley/log").read_text().splitlines()
    assert words == [
        "-m",
        "flowley_jax.train",
        "--config=c.py",
        f"--workdir={workdir}",
        "--config.data.records=a b",
    ]


def test_failing_and_missing_commands_raise_errors():
    with pytest.raises(CommandError, match="no-such-program is not installed"):
        run(["no-such-program"])
    with pytest.raises(CommandError, match="failed with code 3: oh no"):
        run(["bash", "-c", "echo oh no >&2; exit 3"])
    with pytest.raises(CommandError, match=r"bash -c .* did not end within 0\.2 s"):
        run(["bash", "-c", "sleep 600 & wait"], limit=0.2)


@pytest.mark.parametrize("script", ["echo done", "echo done; sleep 600"])
def test_program_that_stays_in_the_background_is_not_waited_for(tmp_path, script):
    """It leaves the group of its command, and holds its outputs, as the master of shared ssh connections."""
    daemon = f"setsid bash -c 'echo $$ > \"{tmp_path}/pid\"; sleep 600; :' &"
    wait = f'while [ ! -s "{tmp_path}/pid" ]; do sleep 0.01; done'
    try:
        with pytest.raises(CommandError) if "600" in script else contextlib.nullcontext():
            assert run(["bash", "-c", f"{daemon}\n{wait}\n{script}"], limit=2.0) == "done\n"
    finally:
        os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_passwords_of_addresses_are_not_shown(capsys):
    with pytest.raises(CommandError, match=r"unable to access 'https://…@example\.org/a\.git'$"):
        run(["bash", "-c", "echo \"unable to access 'https://me:secret@example.org/a.git'\" >&2; exit 1"])
    show(["git", "clone", "https://me:se@cret@example.org/a.git"])
    assert capsys.readouterr().out == "git clone https://…@example.org/a.git\n"


def test_the_command_line_watches_a_fake_gcloud_to_the_end(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text(
        "#!/bin/bash\n"
        f'echo "$*" | head -n 1 >> "{tmp_path}/calls"\n'
        'case "$*" in\n'
        f'  *describe*) [ -f "{tmp_path}/created" ] && echo ACTIVE || {{ echo NOT_FOUND >&2; exit 1; }};;\n'
        f'  *"queued-resources create"*) touch "{tmp_path}/created";;\n'
        f'  *setsid*) touch "{tmp_path}/started";;\n'
        f'  *{STATUS}*) state=none; [ -f "{tmp_path}/started" ] && state=0\n'
        f'    for _ in 1 2 3 4; do echo "{STATUS} $state 3"; done;;\n'
        "esac\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    flags = ("--project=p", "--zone=z", "--repository=r", "--every=1", *COMMON)
    result = _cli("launch.tpu", "--do=watch", *flags, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert "run-1: NONE" in result.stderr and "the training is finished" in result.stderr
    assert "run-1 is kept (active), and is billed until you delete it: gcloud" in result.stderr


@pytest.mark.parametrize("do", ["create", "run", "delete"])
def test_failed_single_steps_say_what_may_be_billed(tmp_path, do):
    fake = tmp_path / "gcloud"
    fake.write_text("#!/bin/bash\necho deadline exceeded >&2\nexit 1\n")
    fake.chmod(0o755)
    flags = ("--project=p", "--zone=z", "--repository=r", *COMMON)
    result = _cli("launch.tpu", f"--do={do}", *flags, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 2 and "deadline exceeded" in result.stderr.splitlines()[-1]
    assert "if run-1 exists, it is billed until you delete it: gcloud" in result.stderr


def test_interrupted_watch_says_what_is_billed(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text(f'#!/bin/bash\ntouch "{tmp_path}/called"\necho ACTIVE\n')
    fake.chmod(0o755)
    flags = ("--project=p", "--zone=z", "--repository=r", "--every=1", *COMMON)
    with children.started(
        [sys.executable, "-m", "launch.tpu", "--do=watch", *flags],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
        limit=120,
    ) as process:
        while not (tmp_path / "called").exists() and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        _, printed = process.communicate()
    assert process.returncode == 130
    assert "run-1" in printed and "billed until you delete it: gcloud compute tpus queued" in printed


def test_a_dry_run_prints_commands_and_runs_nothing(tmp_path):
    flags = ("--project=p", "--zone=z", "--repository=r", "--dry-run", "--no-spot", *COMMON)
    for do, expected in (("create", "create"), ("delete", "delete"), ("watch", "describe")):
        result = _cli("launch.tpu", f"--do={do}", *flags, PATH=str(tmp_path))
        assert result.returncode == 0, result.stderr
        first = result.stdout.splitlines()[0]
        assert first.startswith(f"gcloud compute tpus queued-resources {expected} run-1 --project=p --zone=z")
    assert "--config.train.steps=7" in result.stdout


def test_a_jobset_does_not_count_preemptions_as_failures():
    result = _cli(
        *(
            "launch.gke",
            "--image=i",
            "--bucket=gs://b",
            "--accelerator=v5p-64",
            "--slices=2",
            "--spot",
            *COMMON,
        )
    )
    assert result.returncode == 0, result.stderr
    manifest = yaml.safe_load(result.stdout)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["spec"]["failurePolicy"]["rules"][0] == {
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    (replicated,) = manifest["spec"]["replicatedJobs"]
    kubernetes_job = replicated["template"]["spec"]
    assert (replicated["replicas"], kubernetes_job["completions"], kubernetes_job["parallelism"]) == (2, 8, 8)
    codes = [
        rule.get("onExitCodes", {}).get("values") for rule in kubernetes_job["podFailurePolicy"]["rules"]
    ]
    assert codes == [None, [75]]
    pod = kubernetes_job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"][-1].startswith("exec python -m flowley_jax.train")
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120


def test_a_jobset_leaves_the_words_of_the_command_as_they_are():
    """Kubernetes replaces $(NAME) in a command, and $$(NAME) by $(NAME)."""
    job = Job(config="c.py", workdir="/data/$(HOME) $HOME")
    manifest = gke.jobset(
        job,
        **{"name": "a", "slice_": find_slice("v5litepod-4"), "slices": 1, "image": "i", "bucket": "gs://b"},
        **{"mount": "/data", "service_account": "default", "spot": False},
    )
    (replicated,) = manifest["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1].endswith("'--workdir=/data/$$(HOME) $HOME'")


def test_slurm_scripts_pass_shellcheck_and_requeue_after_75(tmp_path):
    result = _cli("launch.slurm", "--nodes=4", "--hours=1.5", "--setup=. venv/bin/activate", *COMMON)
    assert result.returncode == 0, result.stderr
    script = result.stdout
    _shellcheck(script.replace(". venv/bin/activate", ":"))
    for line in ("--nodes=4", "--time=01:30:00", "--requeue", "--signal=TERM@180", "--gpus-per-node=8"):
        assert f"#SBATCH {line}" in script.splitlines()
    # Run the script with fakes of Slurm's programs.
    for name, body in {"srun": SRUN, "scontrol": f'echo "$@" > "{tmp_path}/requeued"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = slurm.batch_script(
        JOB, name="a", nodes=1, gpus=3, cpus=6, hours=1.0, grace=60, partition="", setup=("true",)
    )
    for code in (0, 2, 75):
        env = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CODE": str(code),
            "SLURM_JOB_ID": "17",
        }
        assert subprocess.run(["bash", "-c", script], env=env, timeout=60).returncode == code
        assert (tmp_path / "requeued").exists() == (code == 75)
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    words = (tmp_path / "words").read_text().splitlines()
    assert words == [
        *["0,1,2", "--kill-on-bad-exit=1", "--cpus-per-task=6", "--gpus-per-node=3", "--gpu-bind=none"],
        *COMMAND,
    ]


def test_training_of_a_slurm_script_sees_all_gpus_of_its_node(tmp_path):
    """Read the GPUs that JAX selects under Slurm's variables and those of the script."""
    script = slurm.batch_script(
        JOB, name="a", nodes=1, gpus=4, cpus=4, hours=1.0, grace=60, partition="", setup=()
    )
    source = "import jax; jax.distributed.initialize(); print(jax.config._read('jax_cuda_visible_devices'))"
    (tmp_path / "srun").write_text(f'#!/bin/bash\nexec "{sys.executable}" -c "{source}"\n')
    (tmp_path / "srun").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    slurm_variables = {
        "SLURM_JOB_ID": "4242",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "JAX_COORDINATOR_PORT": str(port),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    result = children.run(["bash", "-c", script], env={**os.environ, **slurm_variables}, limit=120)
    assert result.stdout.strip() == "0,1,2,3", result.stderr


@pytest.mark.parametrize(("accelerators", "nodes"), [("H100:8", 2), ("H100:8", 1), ("tpu-v5litepod-16", 1)])
def test_sky_tasks_restart_after_75_and_name_the_coordinator(tmp_path, accelerators, nodes):
    job = Job(config="c.py", workdir="/data/run")
    task = sky_task(
        job, name="a", accelerators=accelerators, nodes=nodes, bucket="gs://b", mount="/data", spot=True
    )
    assert task["file_mounts"] == {"/data": {"source": "gs://b", "mode": "MOUNT"}}
    assert task["resources"]["use_spot"] and task["num_nodes"] == nodes
    assert ("[tpu]" if "tpu" in accelerators else "[cuda]") in task["setup"]
    _shellcheck(task["setup"])
    _shellcheck(task["run"])
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/bash\necho "$@" >> calls\n[ "$(wc -l < calls)" -lt 3 ] && exit 75\nexit 4\n')
    python.chmod(0o755)
    env = {**os.environ, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    env["SKYPILOT_NODE_RANK"] = "1"
    assert subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=env, timeout=60).returncode == 4
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3
    cluster = "--coordinator=10.0.0.1:8476 --processes=2 --process=1"
    assert (cluster in calls[0]) == (nodes > 1)


@pytest.mark.parametrize(("stored", "starts"), [(0, 5), (3, 8)])
def test_sky_tasks_that_store_nothing_new_end(tmp_path, stored, starts):
    """Run a training that stops at once, with a newer checkpoint in its first `stored` starts."""
    workdir = tmp_path / "it's one"
    (workdir / "checkpoints/20.orbax-checkpoint-tmp").mkdir(parents=True)
    task = sky_task(
        Job(config="c.py", workdir=str(workdir)),
        **{"name": "a", "accelerators": "H100:8", "nodes": 1, "bucket": "gs://b", "mount": "/", "spot": True},
    )
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(
        "#!/bin/bash\necho >> calls\ncount=$(wc -l < calls)\n"
        f'[ "$count" -gt {stored} ] || mkdir "it\'s one/checkpoints/$((count + 8))"\nexit 75\n'
    )
    python.chmod(0o755)
    assert children.run(["bash", "-c", task["run"]], cwd=tmp_path, limit=60).returncode == 75
    assert len((tmp_path / "calls").read_text()) == starts


SRUN = 'printf "%s\\n" "$JAX_LOCAL_DEVICE_IDS" "$@" > "$(dirname "$0")/words"; exit "$CODE"'
REQUIRED = {
    "launch.tpu": ("--do=run", "--dry_run", "--project=p", "--zone=z", "--repository=r"),
    "launch.gke": ("--image=i", "--bucket=gs://b"),
    "launch.skypilot": ("--bucket=gs://b",),
    "launch.slurm": (),
}


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("launch.tpu", ("--workdir=gs://b/run",), "must be an absolute path that all machines share"),
        ("launch.tpu", ("--workdir=",), "--workdir must name the folder of the run"),
        ("launch.tpu", ("--bucket=gs://b",), "workdir=/data/runs/one must be below mount=/mnt/flowley"),
        ("launch.tpu", ("--set=steps=3",), "--set=steps=3 must set a value of the configuration"),
        ("launch.tpu", ("--accelerator=v9-1",), "accelerator='v9-1' must be one of"),
        ("launch.tpu", ("--spot", "--reserved"), "--spot and --reserved exclude each other"),
        ("launch.tpu", ("--bucket=b",), "bucket='b' must be gs://NAME, a whole bucket"),
        ("launch.tpu", ("--name=Run_1",), "must be at most 40 lower-case letters"),
        ("launch.tpu", ("--repository=",), "--repository must name the Git address"),
        ("launch.tpu", ("--config=configs/nope.py",), "configs/nope.py: no such file"),
        (
            "launch.tpu",
            ("--config=configs/vggsound.py:base,v5e-256", "--accelerator=v5litepod-8"),
            "mesh.fsdp=16 × mesh.tensor=1 must divide the number of devices, 8",
        ),
        ("launch.tpu", ("--revision=",), "--revision='' must be a branch, tag or commit"),
        ("launch.gke", ("--bucket=gs://b/folder",), "must be gs://NAME, a whole bucket"),
        ("launch.gke", ("--mount=/",), "mount='/' must be an absolute path below /"),
        ("launch.gke", ("--workdir=/data/../run",), "workdir=/data/../run must be below mount=/data"),
        ("launch.gke", ("--workdir=/run",), "workdir=/run must be below mount=/data"),
        (
            "launch.gke",
            ("--set=--config.data.records=data/records",),
            "config.data.records=data/records must be below mount=/data",
        ),
        (
            "launch.gke",
            ("--slices=3", "--set=--config.data.batch_size=768", "--set=--config.mesh.fsdp=48"),
            "mesh.data=1 must be a multiple of the 3 slices",
        ),
        ("launch.skypilot", ("--workdir=/run",), "workdir=/run must be below mount=/data"),
        (
            "launch.skypilot",
            ("--accelerators=H100:eight",),
            "must be a name such as H100:8 or tpu-v5litepod-16",
        ),
        ("launch.skypilot", ("--accelerators=tpu-v5litepod-16", "--nodes=2"), "is a whole slice"),
        (
            "launch.slurm",
            ("--nodes=2", "--gpus=3", "--set=--config.data.batch_size=12", "--set=--config.mesh.tensor=2"),
            "mesh.tensor=2 must divide the 3 devices of each machine or be a multiple of them",
        ),
        (
            "launch.slurm",
            ("--hours=0.1", "--grace=400"),
            "grace=400 must be less than the time limit of 360 s",
        ),
        ("launch.slurm", ("--partition=a b",), "partition='a b' must be the name of a partition"),
        (
            "launch.slurm",
            ("--nodes=3",),
            "data.batch_size=512 must be a multiple of data × fsdp = 24 devices",
        ),
        (
            "launch.slurm",
            ("--set=--config.train.stepz=3",),
            "unknown configuration key train.stepz; did you mean train.steps?",
        ),
    ],
)
def test_invalid_flags_end_with_one_line(module, flags, message):
    result = _cli(module, *COMMON, *REQUIRED[module], *flags)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert message in result.stderr.splitlines()[-1]


NUMBERS = {
    "launch.tpu": ("every", "patience", "retries", "unanswered"),
    "launch.gke": ("slices",),
    "launch.skypilot": ("nodes",),
    "launch.slurm": ("nodes", "gpus", "cpus", "hours", "grace"),
}


UNFIT = ("-1", "0", "1e20", str(10**20), "nan", "inf", "", "word")


def _parse_each(module, names, answers):
    """Define a launcher's flags in a child process, and send what each unfit value of a flag ends with."""
    importlib.import_module(module)._define_flags()
    for name in names:
        for text in UNFIT:
            try:
                parse_flags(["x", f"--{name}={text}"])
                answers.put((name, text, "accepted"))
            except FlowleyError as error:
                answers.put((name, text, str(error)))
    answers.put(None)


@pytest.mark.parametrize("module", NUMBERS)
def test_numbers_out_of_their_range_are_refused(module):
    answers = PROGRAMS.Queue()
    process = PROGRAMS.Process(target=_parse_each, args=(module, NUMBERS[module], answers))
    process.start()
    received = list(iter(lambda: answers.get(timeout=60), None))
    process.join(timeout=60)
    assert len(received) == len(UNFIT) * len(NUMBERS[module])
    for name, text, message in received:
        if (name, text) != ("retries", "0"):
            assert message.startswith(f"--{name}='{text}' must be "), message


def test_file_that_exists_is_replaced_only_if_asked(tmp_path):
    (tmp_path / "job.yaml").write_text("mine")
    words = ("launch.skypilot", "--bucket=gs://b", f"--out={tmp_path / 'job.yaml'}", *COMMON)
    result = _cli(*words)
    assert result.returncode == 2 and "job.yaml: already exists; choose another name" in result.stderr
    assert (tmp_path / "job.yaml").read_text() == "mine"
    assert _cli(*words, "--overwrite").returncode == 0
    assert yaml.safe_load((tmp_path / "job.yaml").read_text())["name"] == "run-1"


def test_missing_flags_are_named_once_and_help_shows_every_flag():
    result = _cli("launch.tpu", "--name=a")
    assert result.stderr == "error: --do, --project, --zone must be given (--help lists the options)\n"
    for module in REQUIRED:
        help_text = _cli(module, "--help").stdout
        for name in ("name", "config", "workdir", "set", "out" if module != "launch.tpu" else "do"):
            assert f"\n  --{name}: " in help_text


def test_delete_needs_no_training_flags():
    result = _cli("launch.tpu", "--do=delete", "--dry-run", "--name=run-1", "--project=p", "--zone=z")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[4:6] == ["delete", "run-1"]


def test_second_start_stops_the_training_of_the_first(tmp_path):
    home = tmp_path / "home"
    (home / "flowley/venv/bin").mkdir(parents=True)
    (home / "flowley/code").mkdir()
    python = home / "flowley/venv/bin/python"
    # SIGTERM ends `sleep` too, so that it cannot come too early for `wait`.
    python.write_text("#!/bin/bash\ntrap 'echo stopped; exit 75' TERM\necho started\nsleep 600 &\nwait\n")
    python.chmod(0o755)
    log = home / "flowley/log"
    log.touch()
    script = start_script(Job(config="c.py", workdir="/run"))
    env = {**os.environ, "HOME": str(home)}
    try:
        for words in (["started"], ["started", "stopped", "started"]):
            # Within the block: at its end, children of the script that have not left its group are killed.
            with children.started(["bash", "-c", script], env=env, limit=60) as process:
                assert process.wait() == 0
                deadline = time.monotonic() + 30
                while log.read_text().split() != words and time.monotonic() < deadline:
                    time.sleep(0.02)
            assert log.read_text().split() == words
    finally:
        os.killpg(int((home / "flowley/pid").read_text()), signal.SIGKILL)


def test_interrupted_set_up_starts_anew(tmp_path):
    """Run the set-up with a fake git that is killed in its first clone."""
    home, programs = tmp_path / "home", tmp_path / "programs"
    (home / "flowley/venv/bin").mkdir(parents=True)
    programs.mkdir()
    pip = home / "flowley/venv/bin/pip"
    fakes = {
        pip: "exit 0",
        programs / "git": (
            '[ "$1" = clone ] || { [ -f "$2/whole" ]; exit; }\nmkdir -p "$4/.git"\n'
            '[ -f "$HOME/tried" ] || { touch "$HOME/tried"; kill -TERM $PPID; exit 1; }\ntouch "$4/whole"'
        ),
    }
    for path, body in fakes.items():
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    env = {**os.environ, "HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}"}
    request = SliceRequest(name="a", project="p", zone="z", accelerator="v6e-16")
    codes = [
        children.run(["bash", "-c", setup_script(JOB, request)], env=env, limit=60).returncode for _ in (1, 2)
    ]
    assert codes[0] != 0 and codes[1] == 0


def test_the_training_command_is_quoted_for_a_shell():
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {JOB.command()}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert printed.split("\0")[:-1] == COMMAND
