"""Commands for one Cloud TPU queued resource, as words for a shell; nothing here runs anything."""

import dataclasses
import shlex

from flowley_jax.errors import FlowleyError
from launch.job import Job, install_lines, shell_script
from launch.slices import Slice, find_slice

_HOME = "$HOME/flowley"
# What `status_script` prints before its words.
STATUS = "flowley-status"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A slice to ask for.

    Attributes:
      name: of the queued resource and of its node.
      spot: cheaper, and taken away at any time.
      reserved: from a reservation of the project.
      bucket: gs://… to mount where `workdir` and records are; empty where they are shared otherwise.
      mount: folder on every machine that shows the bucket.
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
            raise FlowleyError("a slice is --spot or --reserved, not both")
        if self.bucket and not self.bucket.startswith("gs://"):
            raise FlowleyError(f"bucket={self.bucket!r} must begin with gs://")

    @property
    def slice(self) -> Slice:
        """The slice that is asked for."""
        return find_slice(self.accelerator)

    def create(self) -> list[str]:
        """Puts the request into the queue."""
        kind = ["--spot"] if self.spot else ["--reserved"] if self.reserved else []
        return [
            *self._queued("create"),
            f"--node-id={self.name}",
            f"--accelerator-type={self.accelerator}",
            f"--runtime-version={self.slice.generation.runtime}",
            *kind,
        ]

    def describe(self) -> list[str]:
        """Prints the state of the request."""
        return [*self._queued("describe"), "--format=value(state.state)"]

    def delete(self) -> list[str]:
        """Removes the request and its machines."""
        return [*self._queued("delete"), "--force", "--quiet"]

    def on_all_machines(self, script: str) -> list[str]:
        """Runs a script on every machine of the slice, and prints what they print."""
        return [
            *("gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name),
            *(f"--project={self.project}", f"--zone={self.zone}", "--worker=all", f"--command={script}"),
        ]

    def _queued(self, verb: str) -> list[str]:
        return [
            *("gcloud", "compute", "tpus", "queued-resources", verb, self.name),
            *(f"--project={self.project}", f"--zone={self.zone}"),
        ]


def setup_script(job: Job, request: Request) -> str:
    """Installs the project and mounts the bucket; does nothing that is done already.

    Raises:
      FlowleyError: the job does not say where the project is.
    """
    if not job.repository:
        raise FlowleyError("--repository must name the Git address that new machines get this project from")
    code = f"{_HOME}/code"
    lines = [
        "set -eu",
        f'mkdir -p "{_HOME}"',
        f'[ -d "{code}/.git" ] || git clone --quiet {shlex.quote(job.repository)} "{code}"',
        f'git -C "{code}" fetch --quiet origin {shlex.quote(job.revision)}',
        f'git -C "{code}" checkout --quiet FETCH_HEAD',
        *install_lines(f"{_HOME}/venv", code, "tpu"),
    ]
    return shell_script([*lines, *(_mount(request) if request.bucket else [])])


def start_script(job: Job) -> str:
    """Starts the training in the background; its end leaves its exit code in a file."""
    inner = f"{job.command()}; echo $? > {_HOME}/exit"
    return shell_script(
        [
            "set -eu",
            f'cd "{_HOME}/code"',
            f'rm -f "{_HOME}/exit"',
            f'export PATH="{_HOME}/venv/bin:$PATH"',
            # The inner shell expands it, when the training has ended.
            "# shellcheck disable=SC2016",
            f'nohup bash -c {shlex.quote(inner)} >> "{_HOME}/log" 2>&1 < /dev/null &',
            f'echo $! > "{_HOME}/pid"',
        ]
    )


def status_script(job: Job) -> str:
    """Prints "none", "running" or an exit code, and the newest checkpoint's step or 0."""
    checkpoints = shlex.quote(f"{job.workdir}/checkpoints")
    return shell_script(
        [
            "state=none",
            f'if [ -f "{_HOME}/exit" ]; then state=$(cat "{_HOME}/exit")',
            f'elif [ -f "{_HOME}/pid" ] && kill -0 "$(cat "{_HOME}/pid")" 2> /dev/null; then',
            "  state=running",
            "fi",
            f"step=$(find {checkpoints} -mindepth 1 -maxdepth 1 -printf '%f\\n' 2> /dev/null "
            "| grep -E '^[0-9]+$' | sort -n | tail -n 1)",
            f'echo "{STATUS} $state ${{step:-0}}"',
        ]
    )


def tail_script(lines: int) -> str:
    """Prints the end of a machine's log."""
    return shell_script([f'tail -n {lines} "{_HOME}/log"'])


def _mount(request: Request) -> list[str]:
    """gcsfuse is not part of the TPU images."""
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
        f"mountpoint -q {mount} || gcsfuse --implicit-dirs {name} {mount}",
    ]
