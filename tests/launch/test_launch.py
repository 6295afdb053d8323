"""Launchers: commands, manifests and scripts, with fake clouds in place of real ones."""

import math
import multiprocessing
import os
import runpy
import stat
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest
import yaml

from flowley_jax.errors import FlowleyError
from launch import slurm, tpu
from launch.commands import CommandError, run
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
        ),
        *(
            "--node-id=run-1",
            "--accelerator-type=v5litepod-16",
            "--runtime-version=v2-alpha-tpuv5-lite",
            "--spot",
        ),
    ]
    assert REQUEST.delete_command()[-2:] == ["--force", "--quiet"]


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
    words = (home / "flowley/log").read_text().splitlines()
    assert words == [
        "-m",
        "flowley_jax.train",
        "--config=c.py",
        f"--workdir={workdir}",
        "--config.data.records=a b",
    ]


class _Cloud:
    """A fake cloud with a script: for each check, the state of the request and the machines' answer.

    A state of None means that there is no request, an answer of None that the machines do not respond.
    """

    def __init__(self, *script):
        self.script = list(script)
        self.actions = []

    def __call__(self, command):
        text = " ".join(command)
        if "describe" in text:
            self.state, self.answer = self.script.pop(0)
            if self.state is None:
                raise CommandError("gcloud failed with code 1: ERROR: NOT_FOUND: no such resource")
            return self.state + "\n"
        if STATUS in text:
            if self.answer is None:
                raise CommandError("ssh: connection refused")
            rows = [self.answer] * 4 if isinstance(self.answer, str) else self.answer
            return "".join(f"{STATUS} {row}\n" for row in rows)
        for name, words in {
            "create": "queued-resources create",
            "delete": "queued-resources delete",
            "setup": "git clone",
            "start": "nohup",
            "tail": "tail -n",
        }.items():
            if words in text:
                self.actions.append(name)
        return "the last line of the log"


def _watch(*script, patience=2):
    cloud = _Cloud(*script)
    pauses = []
    try:
        tpu.watch(JOB, REQUEST, cloud, every=60.0, patience=patience, sleep=pauses.append)
    finally:
        assert all(pause == 60.0 for pause in pauses)
    return cloud


def test_watch_survives_preemption_and_ends_when_the_training_is_finished():
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
    start = ["setup", "start"]
    assert cloud.actions == ["create", *start, "delete", "create", *start, *start]
    assert not cloud.script


def test_watch_shows_the_log_when_the_training_fails():
    with pytest.raises(FlowleyError, match=r"failed with code 2; .*run-1:\nthe last line of the log"):
        _watch(("ACTIVE", ["running 5", "2 5", "running 5", "running 5"]))


def test_watch_gives_up_when_attempts_bring_no_newer_checkpoint():
    script = [("ACTIVE", "none 7"), ("ACTIVE", "75 7")] * 5
    with pytest.raises(
        FlowleyError, match="2 attempts on run-1 have brought no checkpoint newer than step 7"
    ):
        _watch(*script)
    progressing = [("ACTIVE", f"75 {step}") for step in range(1, 20)]
    assert len(_watch(*progressing, ("ACTIVE", "0 20")).actions) == 38


def test_watch_raises_errors_of_the_cloud():
    class Refusing(_Cloud):
        def __call__(self, command):
            raise CommandError("gcloud … failed with code 1: PERMISSION_DENIED")

    with pytest.raises(CommandError, match="PERMISSION_DENIED"):
        tpu.watch(JOB, REQUEST, Refusing(), every=1.0, patience=1, sleep=lambda _: None)


def test_failing_and_missing_commands_raise_errors():
    with pytest.raises(CommandError, match="no-such-program is not installed"):
        run(["no-such-program"])
    with pytest.raises(CommandError, match="failed with code 3: oh no"):
        run(["bash", "-c", "echo oh no >&2; exit 3"])


def test_the_command_line_watches_a_fake_gcloud_to_the_end(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text(
        "#!/bin/bash\n"
        f'echo "$*" | head -n 1 >> "{tmp_path}/calls"\n'
        'case "$*" in\n'
        f'  *describe*) [ -f "{tmp_path}/created" ] && echo ACTIVE || {{ echo NOT_FOUND >&2; exit 1; }};;\n'
        f'  *"queued-resources create"*) touch "{tmp_path}/created";;\n'
        f'  *nohup*) touch "{tmp_path}/started";;\n'
        f'  *{STATUS}*) state=none; [ -f "{tmp_path}/started" ] && state=0\n'
        f'    for _ in 1 2 3 4; do echo "{STATUS} $state 3"; done;;\n'
        "esac\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    flags = ("--project=p", "--zone=z", "--repository=r", "--every=1", *COMMON)
    result = _cli("launch.tpu", "--do=watch", *flags, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert (
        "run-1: NONE" in result.stderr
        and "finished; --do=delete releases the slice (billed until then)" in result.stderr
    )


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


def test_slurm_scripts_pass_shellcheck_and_requeue_after_75(tmp_path):
    result = _cli("launch.slurm", "--nodes=4", "--hours=1.5", "--setup=. venv/bin/activate", *COMMON)
    assert result.returncode == 0, result.stderr
    script = result.stdout
    _shellcheck(script.replace(". venv/bin/activate", ":"))
    for line in ("--nodes=4", "--time=01:30:00", "--requeue", "--signal=TERM@180", "--gpus-per-node=8"):
        assert f"#SBATCH {line}" in script.splitlines()
    # Run the script with fakes of Slurm's programs.
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
        assert subprocess.run(["bash", "-c", script], env=env, timeout=60).returncode == code
        assert (tmp_path / "requeued").exists() == (code == 75)
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


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
        ("launch.tpu", ("--bucket=b",), "must begin with gs://"),
        ("launch.tpu", ("--name=Run_1",), "must be at most 40 lower-case letters"),
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
        (
            "launch.skypilot",
            ("--accelerators=H100:eight",),
            "must be a name such as H100:8 or tpu-v5litepod-16",
        ),
        ("launch.skypilot", ("--accelerators=tpu-v5litepod-16", "--nodes=2"), "is a whole slice"),
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


def test_the_training_command_is_quoted_for_a_shell():
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {JOB.command()}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert printed.split("\0")[:-1] == COMMAND
