"""Commands for a Cloud TPU queued resource, and shell scripts for its machines. Nothing here runs them."""

import dataclasses
import shlex

from flowley_jax.errors import FlowleyError
from launch.job import Job, check_bucket, install_lines, newest_step_line, shell_script
from launch.slices import Slice, find_slice

_HOME = "$HOME/flowley"
# First word of the line that `status_script` prints.
STATUS = "flowley-status"
# Enough for a step and a checkpoint.
_STOP_SECONDS = 180


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceRequest:
    """A request for a TPU slice.

    Attributes:
      name: name of the queued resource and of its node.
      project: Google Cloud project.
      zone: zone that has such slices.
      accelerator: generation and size, such as v5litepod-16.
      spot: request a spot slice, which is cheaper but can be preempted at any time.
      reserved: use a reservation of the project.
      bucket: gs://… to mount, with the run and the records; empty if machines share them in a different way.
      mount: folder at which machines see the bucket.
    """

    name: str
    project: str
    zone: str
    accelerator: str
    spot: bool = False
    reserved: bool = False
    bucket: str = ""
    mount: str = "/mnt/flowley"

    def __post_init__(self):
        find_slice(self.accelerator)
        if self.spot and self.reserved:
            raise FlowleyError("--spot and --reserved exclude each other")
        if self.bucket:
            check_bucket(self.bucket, "gs")

    @property
    def slice(self) -> Slice:
        """The requested slice."""
        return find_slice(self.accelerator)

    def create_command(self) -> list[str]:
        """Return the command that queues the request."""
        kind = ["--spot"] if self.spot else ["--reserved"] if self.reserved else []
        return [
            *self._queued_resources("create"),
            f"--node-id={self.name}",
            f"--accelerator-type={self.accelerator}",
            f"--runtime-version={self.slice.generation.runtime}",
            *kind,
        ]

    def describe_command(self) -> list[str]:
        """Return the command that prints the state of the request."""
        return [*self._queued_resources("describe"), "--format=value(state.state)"]

    def delete_command(self) -> list[str]:
        """Return the command that deletes the request and its machines."""
        return [*self._queued_resources("delete"), "--force"]

    @property
    def deletion(self) -> str:
        """The command that deletes the request and its machines, to be typed into a shell."""
        return shlex.join(self.delete_command())

    def on_all_machines(self, script: str) -> list[str]:
        """Return the command that runs a script on every machine of the slice and prints their output."""
        return [
            *("gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name),
            *(f"--project={self.project}", f"--zone={self.zone}", "--quiet", "--worker=all"),
            # A machine that vanishes must not leave ssh waiting.
            *("--ssh-flag=-oConnectTimeout=30", "--ssh-flag=-oServerAliveInterval=30"),
            f"--command={script}",
        ]

    def _queued_resources(self, verb: str) -> list[str]:
        return [
            *("gcloud", "compute", "tpus", "queued-resources", verb, self.name),
            *(f"--project={self.project}", f"--zone={self.zone}", "--quiet"),
        ]


def setup_script(job: Job, request: SliceRequest) -> str:
    """Return a script that installs the project and mounts the bucket, unless that has already been done.

    It may be interrupted at any point and run again.

    Raises:
      FlowleyError: the job names no repository.
    """
    if not job.repository:
        raise FlowleyError("--repository must name the Git address from which machines clone this project")
    code = f"{_HOME}/code"
    lines = [
        "set -eu",
        f'mkdir -p "{_HOME}"',
        # A set-up whose connection broke may still run.
        f'exec 8> "{_HOME}/setup-lock"',
        "flock -w 1800 8",
        f'if [ ! -d "{code}" ]; then',
        f'  rm -rf "{code}.new"',
        f'  git clone --quiet {shlex.quote(job.repository)} "{code}.new"',
        f'  mv "{code}.new" "{code}"',
        "fi",
        f'git -C "{code}" fetch --quiet origin {shlex.quote(job.revision)}',
        f'git -C "{code}" checkout --quiet FETCH_HEAD',
        *install_lines(f"{_HOME}/venv", code, "tpu"),
    ]
    return shell_script([*lines, *(_mount_lines(request) if request.bucket else [])])


def start_script(job: Job) -> str:
    """Return a script that starts the training in the background, and first stops one that still runs.

    A training holds a lock while it runs. When it ends, its exit code is in the file `exit`.
    """
    command = f"{job.command()}; echo $? > {_HOME}/exit.new; mv {_HOME}/exit.new {_HOME}/exit"
    pid = f'"-$(cat "{_HOME}/pid")"'
    return shell_script(
        [
            "set -eu",
            f'cd "{_HOME}/code"',
            f'exec 9> "{_HOME}/lock"',
            "if ! flock -n 9; then",
            f"  kill -TERM -- {pid} || true",
            f"  flock -w {_STOP_SECONDS} 9 || {{ kill -KILL -- {pid} || true; flock -w 30 9; }}",
            "fi",
            f'rm -f "{_HOME}/exit"',
            f'export PATH="{_HOME}/venv/bin:$PATH"',
            # The single-quoted $? and $HOME are for the inner shell.
            "# shellcheck disable=SC2016",
            f'setsid bash -c {shlex.quote(command)} >> "{_HOME}/log" 2>&1 < /dev/null &',
            f'echo $! > "{_HOME}/pid"',
        ]
    )


def status_script(job: Job) -> str:
    """Return a script that prints a line with the training's state and the step of its newest checkpoint.

    The state is "none", "running" or an exit code; the step is 0 before the first checkpoint.
    """
    return shell_script(
        [
            "state=none",
            f'if [ -s "{_HOME}/exit" ]; then state=$(cat "{_HOME}/exit")',
            f'elif [ -f "{_HOME}/lock" ] && ! flock -n "{_HOME}/lock" true; then state=running',
            "fi",
            newest_step_line(job.workdir),
            f'echo "{STATUS} $state $step"',
        ]
    )


def tail_script(lines: int) -> str:
    """Return a script that prints the last lines of a machine's log."""
    return shell_script([f'tail -n {lines} "{_HOME}/log"'])


def _mount_lines(request: SliceRequest) -> list[str]:
    """Return shell lines that mount the bucket and, since TPU images lack gcsfuse, install it first."""
    name, mount = shlex.quote(request.bucket.removeprefix("gs://").rstrip("/")), shlex.quote(request.mount)
    source = "https://packages.cloud.google.com/apt"
    key = "/usr/share/keyrings/cloud.google.asc"
    return [
        "if ! command -v gcsfuse > /dev/null; then",
        f"  curl -fsSL {source}/doc/apt-key.gpg | sudo tee {key} > /dev/null",
        f'  echo "deb [signed-by={key}] {source} gcsfuse-$(lsb_release -c -s) main"'
        " | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null",
        "  sudo apt-get -q update > /dev/null && sudo apt-get -q install -y gcsfuse > /dev/null",
        "fi",
        f'sudo mkdir -p {mount} && sudo chown "$USER" {mount}',
        # gcsfuse stays, and must not keep the lock of the set-up.
        f"mountpoint -q {mount} || gcsfuse --implicit-dirs {name} {mount} 8>&-",
    ]
