"""What is to be trained, wherever it runs."""

import dataclasses
import re
import shlex
from collections.abc import Sequence

from absl import flags

from flowley_jax.errors import FlowleyError

# --help of a launcher shows these flags as its own.
flags.disclaim_key_flags()
# Of flowley_jax.train: stored and stopped early, run me again.
RUN_AGAIN = 75
_EXAMPLE = "--set=--config.train.steps=1000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training: the same command on every machine that takes part.

    Attributes:
      config: configuration file with its options, relative to the project.
      workdir: folder of the run, the same for all machines (a mounted bucket or a shared disk).
      overrides: values of the configuration, such as --config.train.steps=1000.
      repository, revision: what is checked out on machines that have nothing yet.
    """

    config: str
    workdir: str
    overrides: tuple[str, ...] = ()
    repository: str = ""
    revision: str = "main"

    def __post_init__(self):
        if not self.workdir.startswith("/"):
            raise FlowleyError(
                f"workdir={self.workdir!r} must be an absolute path that all machines share: mount buckets, "
                "with --bucket or otherwise"
            )
        for flag in self.overrides:
            if not re.match(r"--config\.\w+", flag):
                raise FlowleyError(f"--set={flag} must set a value of the configuration: {_EXAMPLE}")

    def command(self, *more: str) -> str:
        """The shell's words for the training, quoted."""
        words = ["python", "-m", "flowley_jax.train", f"--config={self.config}", f"--workdir={self.workdir}"]
        return shlex.join([*words, *self.overrides, *more])


def check_name(name: str) -> str:
    """Returns a name that clouds and clusters take for a job; raises FlowleyError for others."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise FlowleyError(f"name={name!r} must be lower-case letters, digits and hyphens, 40 at most")
    return name


def define_job_flags() -> None:
    """Flags that all launchers have in common."""
    flags.DEFINE_string("name", None, "Name of the job and of what is made for it.", required=True)
    flags.DEFINE_string("config", "configs/vggsound.py", "Configuration file with its options.")
    flags.DEFINE_string("workdir", None, "Folder of the run, absolute, shared by all machines.")
    flags.DEFINE_multi_string("set", [], f"A value of the configuration, such as {_EXAMPLE}.")
    flags.DEFINE_string("repository", "", "Git address of this project, for machines that have nothing yet.")
    flags.DEFINE_string("revision", "main", "What to check out of it.")


def job_from_flags() -> Job:
    """The job that the flags describe; raises FlowleyError where they describe none."""
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
    """Shell lines that make a Python environment with the project and the locked versions of its packages.

    Images have Pythons that are too old.

    Args:
      environment, project: folders; may have shell variables.
      extra: tpu or cuda.
    """
    install = f'"{environment}/bin/pip" install --quiet'
    return [
        f'if [ ! -x "{environment}/bin/python" ]; then',
        "  python3 -m pip install --quiet --user uv",
        f'  "$HOME/.local/bin/uv" venv --quiet --seed --python 3.12 "{environment}"',
        "fi",
        f'{install} --require-hashes -r "{project}/requirements.lock"',
        # The accelerator's packages are those of the version of JAX that is there now.
        f'{install} -e "{project}[{extra}]"',
    ]


def shell_script(lines: Sequence[str]) -> str:
    """Lines as a text that ends with a newline."""
    return "\n".join(lines) + "\n"
