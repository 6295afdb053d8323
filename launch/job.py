"""A training job: its configuration and folder, wherever it runs."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from absl import flags

from flowley_jax.errors import FlowleyError

# --help of a launcher shows these flags as its own.
flags.disclaim_key_flags()
_EXAMPLE = "--set=--config.train.steps=1000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training run, with the same command on every machine.

    Attributes:
      config: configuration file with its options, relative to the project.
      workdir: folder of the run, the same path on all machines (in a mounted bucket or on a shared disk).
      overrides: changed values of the configuration, such as --config.train.steps=1000.
      repository: Git address of the project, for machines that do not have it yet.
      revision: branch, tag or commit to check out.
    """

    config: str
    workdir: str
    overrides: tuple[str, ...] = ()
    repository: str = ""
    revision: str = "main"

    def __post_init__(self):
        if not self.revision:
            raise FlowleyError("--revision='' must be a branch, tag or commit")
        if not self.workdir.startswith("/"):
            raise FlowleyError(
                f"workdir={self.workdir!r} must be an absolute path that all machines share; mount a bucket, "
                "with --bucket or otherwise"
            )
        for override in self.overrides:
            if not re.match(r"--config\.\w+", override):
                raise FlowleyError(f"--set={override} must set a value of the configuration: {_EXAMPLE}")

    def command(self, *arguments: str) -> str:
        """Return the training command, quoted for a shell, with further arguments at its end."""
        words = ["python", "-m", "flowley_jax.train", f"--config={self.config}", f"--workdir={self.workdir}"]
        return shlex.join([*words, *self.overrides, *arguments])


def check_name(name: str) -> str:
    """Return the name of a job if clouds and clusters accept it.

    Raises:
      FlowleyError: they do not.
    """
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise FlowleyError(
            f"name={name!r} must be at most 40 lower-case letters, digits and hyphens, a letter first"
        )
    return name


def check_bucket(bucket: str, *schemes: str) -> str:
    """Return the address of a bucket if it is one, such as gs://name.

    Args:
      bucket: the address.
      schemes: schemes that are allowed.

    Raises:
      FlowleyError: it has another scheme, no name, or a path within the bucket.
    """
    if not re.fullmatch(rf"({'|'.join(schemes)})://[\w.-]+/?", bucket):
        allowed = " or ".join(f"{scheme}://NAME" for scheme in schemes)
        raise FlowleyError(f"bucket={bucket!r} must be {allowed}, a whole bucket")
    return bucket


def define_job_flags() -> None:
    """Define the flags that all launchers have in common."""
    flags.DEFINE_string("name", None, "Name of the job and of the resources created for it.", required=True)
    flags.DEFINE_string("config", "configs/vggsound.py", "Configuration file with its options.")
    flags.DEFINE_string("workdir", None, "Folder of the run: an absolute path that all machines share.")
    flags.DEFINE_multi_string("set", [], f"Change a value of the configuration, such as {_EXAMPLE}.")
    flags.DEFINE_string(
        "repository", "", "Git address of this project, for machines that do not have it yet."
    )
    flags.DEFINE_string("revision", "main", "Branch, tag or commit to check out.")


def job_from_flags() -> Job:
    """Return the job that the flags describe.

    Raises:
      FlowleyError: --workdir is missing, or a value is invalid.
    """
    values = flags.FLAGS
    if not values.workdir:
        raise FlowleyError("--workdir must name the folder of the run (--help lists the options)")
    return Job(
        config=values.config,
        workdir=values.workdir,
        overrides=tuple(values.set),
        repository=values.repository,
        revision=values.revision,
    )


def install_lines(environment: str, project: str, extra: str) -> list[str]:
    """Return shell lines that install the project and its locked dependencies in a new Python environment.

    Images of TPU VMs and clusters have a Python that is too old, so uv installs another one.

    Args:
      environment: folder of the virtual environment; may contain shell variables.
      project: folder of the project; may contain shell variables.
      extra: tpu or cuda.
    """
    install = f'"{environment}/bin/pip" install --quiet'
    return [
        # An environment whose creation was interrupted has no pip.
        f'if [ ! -x "{environment}/bin/pip" ]; then',
        f'  rm -rf "{environment}"',
        "  python3 -m pip install --quiet --user uv",
        f'  "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 "{environment}"',
        "fi",
        f'{install} --require-hashes -r "{project}/requirements.lock"',
        # Last, so that the accelerator's packages match the version of JAX just installed.
        f'{install} -e "{project}[{extra}]"',
    ]


def newest_step_line(workdir: str) -> str:
    """Return a shell line that sets `step` to the step of a run's newest checkpoint, 0 before the first."""
    checkpoints = shlex.quote(f"{workdir}/checkpoints")
    return (
        f"step=$(find {checkpoints} -mindepth 1 -maxdepth 1 -printf '%f\\n' 2> /dev/null "
        "| grep -E '^[0-9]+$' | sort -n | tail -n 1); step=${step:-0}"
    )


def shell_script(lines: Sequence[str]) -> str:
    """Return the lines as one text that ends with a newline."""
    return "\n".join(lines) + "\n"
