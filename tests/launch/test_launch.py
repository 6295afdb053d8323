"""Launchers: what they would run and write, scripts that shells take, and the whole watch over a slice."""

import multiprocessing
import os
import runpy
import stat
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import yaml

from flowley_jax.errors import FlowleyError
from launch import slurm, tpu
from launch.commands import CommandError, run
from launch.job import Job
from launch.queued import STATUS, Request, setup_script, start_script, status_script
from launch.skypilot import sky_task
from launch.slices import GENERATIONS, find_slice

ROOT = Path(__file__).parents[2]
JOB = Job(
    config="configs/vggsound.py:base,v5e-16",
    workdir="/mnt/flowley/runs/it's one",
    overrides=("--config.train.steps=1000",),
    repository="https://example.org/flowley-jax.git",
)
REQUEST = Request(
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


def _shellcheck(script, shell="bash"):
    done = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), f"--shell={shell}", "-"],
        input=script,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# Importing JAX takes seconds, and so it is imported once, by the process that all programs are forks of.
PROGRAMS = multiprocessing.get_context("forkserver")
PROGRAMS.set_forkserver_preload(["launch.check"])


def _run_program(module, flags, environment, folder):
    """What a shell would run, in a process of its own; writes what it prints into a folder."""
    os.chdir(ROOT)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
    # This file imports some of them.
    sys.modules.pop(module, None)
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _cli(module, *flags, **environment):
    with tempfile.TemporaryDirectory() as folder:
        process = PROGRAMS.Process(target=_run_program, args=(module, flags, environment, folder))
        process.start()
        process.join(timeout=120)
        printed = {name: Path(folder, name).read_text() for name in ("stdout", "stderr")}
    return types.SimpleNamespace(returncode=process.exitcode, **printed)


def test_a_slice_has_the_hosts_and_the_shape_of_its_name():
    found = {name: find_slice(name) for name in ("v5litepod-16", "v5litepod-256", "v5p-64", "v6e-16", "v4-8")}
    assert {name: (one.chips, one.hosts, one.topology) for name, one in found.items()} == {
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
        ("v5litepod-3", "no slice of whole hosts"),
        ("v5p", "must be one"),
    ],
)
def test_slices_that_do_not_exist(accelerator, message):
    with pytest.raises(FlowleyError, match=message):
        find_slice(accelerator)


def test_every_known_shape_has_the_chips_of_its_size():
    for name, generation in GENERATIONS.items():
        for chips in (4, 8, 16, 32, 64, 128, 256):
            found = find_slice(f"{name}-{chips * generation.cores}")
            sizes = [int(size) for size in found.topology.split("x")]
            assert len(sizes) == generation.planes
            assert sizes[0] * sizes[1] * (sizes[2] if len(sizes) == 3 else 1) == chips


def test_the_request_names_slice_software_and_price():
    assert REQUEST.create() == [
        *(
            "gcloud",
            "compute",
            "tpus",
            "queued-resources",
            "create",
            "run-1",
            "--project=p",
            "--zone=us-west4-a",
        ),
        *(
            "--node-id=run-1",
            "--accelerator-type=v5litepod-16",
            "--runtime-version=v2-alpha-tpuv5-lite",
            "--spot",
        ),
    ]
    assert REQUEST.delete()[-2:] == ["--force", "--quiet"]


@pytest.mark.parametrize("bucket", ["", "gs://b"])
def test_scripts_for_machines_are_clean(bucket):
    request = Request(name="a", project="p", zone="z", accelerator="v6e-16", bucket=bucket)
    for script in (setup_script(JOB, request), start_script(JOB), status_script(JOB)):
        _shellcheck(script)


def test_a_machine_starts_the_training_tells_how_it_is_and_keeps_its_exit_code(tmp_path):
    """The scripts themselves, with a program in place of the training."""
    home = tmp_path / "home"
    (home / "flowley/venv/bin").mkdir(parents=True)
    (home / "flowley/code").mkdir()
    workdir = tmp_path / "runs/it's one"
    for step in (9, 10, 200):
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    (workdir / "checkpoints" / "300.orbax-checkpoint-tmp").mkdir()
    job = Job(config="c.py", workdir=str(workdir), overrides=("--config.data.records=a b",))
    python = home / "flowley/venv/bin/python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nread -r _ < "$HOME/go"\nexit 75\n')
    python.chmod(0o755)
    os.mkfifo(home / "go")

    def sh(script):
        env = {**os.environ, "HOME": str(home)}
        return subprocess.run(
            ["bash", "-c", script], env=env, capture_output=True, text=True, check=True
        ).stdout

    assert sh(status_script(job)).split() == [STATUS, "none", "200"]
    sh(start_script(job))
    assert sh(status_script(job)).split() == [STATUS, "running", "200"]
    (home / "go").write_text("\n")
    pid = int((home / "flowley/pid").read_text())
    for _ in range(100):
        if (home / "flowley/exit").exists():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert sh(status_script(job)).split() == [STATUS, "75", "200"]
    words = (home / "flowley/log").read_text().splitlines()
    assert words == [
        "-m",
        "flowley_jax.train",
        "--config=c.py",
        f"--workdir={workdir}",
        "--config.data.records=a b",
    ]
    assert pid > 0


class _Cloud:
    """A cloud that plays a script: for each look the request's state and what the machines say."""

    def __init__(self, *looks):
        self.looks = list(looks)
        self.done = []

    def __call__(self, command):
        text = " ".join(command)
        if "describe" in text:
            self.state, self.said = self.looks.pop(0)
            if self.state is None:
                raise CommandError("gcloud failed with code 1: ERROR: NOT_FOUND: no such resource")
            return self.state + "\n"
        if STATUS in text:
            if self.said is None:
                raise CommandError("ssh: connection refused")
            rows = [self.said] * 4 if isinstance(self.said, str) else self.said
            return "".join(f"{STATUS} {row}\n" for row in rows)
        for name, words in {
            "create": "queued-resources create",
            "delete": "queued-resources delete",
            "setup": "git clone",
            "start": "nohup",
            "tail": "tail -n",
        }.items():
            if words in text:
                self.done.append(name)
        return "the last line of the log"


def _watch(*looks, patience=2):
    cloud = _Cloud(*looks)
    pauses = []
    try:
        tpu.watch(JOB, REQUEST, cloud, every=60.0, patience=patience, sleep=pauses.append)
    finally:
        assert all(pause == 60.0 for pause in pauses)
    return cloud


def test_watch_gets_a_slice_survives_preemption_and_ends_with_the_training():
    cloud = _watch(
        (None, None),
        ("WAITING_FOR_RESOURCES", None),
        ("ACTIVE", "none 0"),
        ("ACTIVE", "running 0"),
        ("ACTIVE", "running 500"),
        ("ACTIVE", None),
        ("SUSPENDED", None),
        ("PROVISIONING", None),
        ("ACTIVE", "none 500"),
        ("ACTIVE", ["75 800", "running 800", "75 800", "75 800"]),
        ("ACTIVE", "75 800"),
        ("ACTIVE", "running 800"),
        ("ACTIVE", "0 1000"),
    )
    assert cloud.done == ["create", "setup", "start", "delete", "create", "setup", "start", "setup", "start"]
    assert not cloud.looks


def test_watch_ends_with_the_log_when_the_training_fails():
    with pytest.raises(FlowleyError, match=r"failed with code 2; .*run-1:\nthe last line of the log"):
        _watch(("ACTIVE", ["running 5", "2 5", "running 5", "running 5"]))


def test_watch_gives_up_when_attempts_gain_nothing():
    looks = [("ACTIVE", "none 7"), ("ACTIVE", "75 7")] * 5
    with pytest.raises(
        FlowleyError, match="2 attempts on run-1 have brought no checkpoint newer than step 7"
    ):
        _watch(*looks)
    gaining = [("ACTIVE", f"75 {step}") for step in range(1, 20)]
    assert len(_watch(*gaining, ("ACTIVE", "0 20")).done) == 38


def test_watch_passes_on_what_the_cloud_refuses():
    class Refusing(_Cloud):
        def __call__(self, command):
            raise CommandError("gcloud … failed with code 1: PERMISSION_DENIED")

    with pytest.raises(CommandError, match="PERMISSION_DENIED"):
        tpu.watch(JOB, REQUEST, Refusing(), every=1.0, patience=1, sleep=lambda _: None)


def test_commands_that_fail_say_so_and_missing_ones_too():
    with pytest.raises(CommandError, match="no-such-program is not installed"):
        run(["no-such-program"])
    with pytest.raises(CommandError, match="failed with code 3: oh no"):
        run(["bash", "-c", "echo oh no >&2; exit 3"])


def test_the_real_command_line_watches_a_pretended_gcloud_to_the_end(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text(
        "#!/bin/bash\n"
        f'echo "$*" | head -n 1 >> "{tmp_path}/calls"\n'
        'case "$*" in\n'
        f'  *describe*) [ -f "{tmp_path}/made" ] && echo ACTIVE || {{ echo NOT_FOUND >&2; exit 1; }};;\n'
        f'  *"queued-resources create"*) touch "{tmp_path}/made";;\n'
        f'  *nohup*) touch "{tmp_path}/started";;\n'
        f'  *{STATUS}*) state=none; [ -f "{tmp_path}/started" ] && state=0\n'
        f'    for _ in 1 2 3 4; do echo "{STATUS} $state 3"; done;;\n'
        "esac\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    flags = ("--project=p", "--zone=z", "--repository=r", "--every=1", *COMMON)
    done = _cli("launch.tpu", "--do=watch", *flags, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "run-1: NONE" in done.stderr and "finished; --do=delete gives the slice back" in done.stderr


def test_a_dry_run_prints_commands_and_runs_nothing(tmp_path):
    flags = ("--project=p", "--zone=z", "--repository=r", "--dry-run", "--no-spot", *COMMON)
    for do, expected in (("create", "create"), ("delete", "delete"), ("watch", "describe")):
        done = _cli("launch.tpu", f"--do={do}", *flags, PATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        first = done.stdout.splitlines()[0]
        assert first.startswith(f"gcloud compute tpus queued-resources {expected} run-1 --project=p --zone=z")
    assert "--config.train.steps=7" in done.stdout


def test_a_jobset_restarts_for_nothing_when_told_to_and_counts_failures():
    done = _cli(
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
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
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


def test_slurm_scripts_are_clean_and_go_back_into_the_queue(tmp_path):
    done = _cli("launch.slurm", "--nodes=4", "--hours=1.5", "--setup=. venv/bin/activate", *COMMON)
    assert done.returncode == 0, done.stderr
    script = done.stdout
    _shellcheck(script.replace(". venv/bin/activate", ":"))
    for line in ("--nodes=4", "--time=01:30:00", "--requeue", "--signal=TERM@180", "--gpus-per-node=8"):
        assert f"#SBATCH {line}" in script.splitlines()
    # The script itself, with programs in place of Slurm's.
    for name, body in {"srun": 'exit "$CODE"', "scontrol": f'echo "$@" > "{tmp_path}/requeued"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = slurm.batch_script(
        JOB, name="a", nodes=1, gpus=1, hours=1.0, grace=60, partition="", setup=("true",)
    )
    for code in (0, 2, 75):
        env = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CODE": str(code),
            "SLURM_JOB_ID": "17",
        }
        assert subprocess.run(["bash", "-c", script], env=env).returncode == code
        assert (tmp_path / "requeued").exists() == (code == 75)
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


@pytest.mark.parametrize(("accelerators", "nodes"), [("H100:8", 2), ("H100:8", 1), ("tpu-v5litepod-16", 1)])
def test_sky_tasks_run_again_after_75_and_know_their_neighbours(tmp_path, accelerators, nodes):
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
    assert subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=env).returncode == 4
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3
    told = "--coordinator=10.0.0.1:8476 --processes=2 --process=1"
    assert (told in calls[0]) == (nodes > 1)


NEEDED = {
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
        ("launch.tpu", ("--spot", "--reserved"), "--spot or --reserved, not both"),
        ("launch.tpu", ("--bucket=b",), "must begin with gs://"),
        ("launch.tpu", ("--name=Run_1",), "must be lower-case letters"),
        ("launch.tpu", ("--repository=",), "--repository must name the Git address"),
        ("launch.tpu", ("--config=configs/nope.py",), "configs/nope.py: no such file"),
        (
            "launch.tpu",
            ("--config=configs/vggsound.py:base,v5e-256", "--accelerator=v5litepod-8"),
            "mesh.fsdp=16 × mesh.tensor=1 must divide the number of devices, 8",
        ),
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
        ("launch.skypilot", ("--accelerators=H100:eight",), "must be as H100:8 or tpu-v5litepod-16"),
        ("launch.skypilot", ("--accelerators=tpu-v5litepod-16", "--nodes=2"), "names a whole slice"),
        (
            "launch.slurm",
            ("--nodes=3",),
            "data.batch_size=512 must be a multiple of data × fsdp = 24 devices",
        ),
        ("launch.slurm", ("--set=--config.train.stepz=3",), "unknown configuration key 'stepz'"),
    ],
)
def test_flags_that_mean_nothing(module, flags, message):
    done = _cli(module, *COMMON, *NEEDED[module], *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]


def test_what_is_missing_is_named_once_and_help_shows_every_flag():
    done = _cli("launch.tpu", "--name=a")
    assert done.stderr == "error: --do, --project, --zone must be given (--help lists the options)\n"
    for module in NEEDED:
        shown = _cli(module, "--help").stdout
        for name in ("name", "config", "workdir", "set", "out" if module != "launch.tpu" else "do"):
            assert f"\n  --{name}: " in shown


def test_a_slice_is_given_back_without_a_word_about_the_training():
    done = _cli("launch.tpu", "--do=delete", "--dry-run", "--name=run-1", "--project=p", "--zone=z")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[4:6] == ["delete", "run-1"]


def test_the_command_is_quoted_for_a_shell():
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {JOB.command()}"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.split("\0")[:-1] == COMMAND
