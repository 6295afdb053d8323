"""Whether a job would start where it is sent: its configuration is read here as it will be there."""

from absl import flags
from ml_collections import config_flags

from flowley_jax.cli import parse_flags
from flowley_jax.config import ExperimentConfig, experiment_from
from flowley_jax.errors import FlowleyError
from flowley_jax.training.sharding import check_sizes, mesh_sizes
from launch.job import Job


def configuration(job: Job) -> ExperimentConfig:
    """The configuration of the job with its overrides.

    Raises:
      FlowleyError: the file is not there, or an override is no value of it.
    """
    command = ["launch", f"--config={job.config}", *job.overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    parse_flags(command, values)
    return experiment_from(config.value.to_dict())


def check_devices(config: ExperimentConfig, devices: int, *, slices: int = 1) -> None:
    """Raises FlowleyError where mesh, batch or heads do not fit so many accelerators."""
    check_sizes(config, mesh_sizes(config.mesh, devices, slices=slices))


def check_mounted(job: Job, config: ExperimentConfig, mount: str) -> None:
    """Raises FlowleyError for a run or records outside a folder: machines of a cloud have nothing else."""
    places = {"workdir": job.workdir}
    if not config.data.generate:
        places["--set=--config.data.records"] = config.data.records
    chosen = any("data.records" in override for override in job.overrides)
    for name, place in places.items():
        if not place.startswith(mount.rstrip("/") + "/"):
            whose = "" if chosen or name == "workdir" else " (the configuration's own)"
            raise FlowleyError(
                f"{name}={place}{whose} must be below mount={mount}: machines share nothing else"
            )
