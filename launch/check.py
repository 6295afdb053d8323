"""Check that a job would start on its machines, before anything is sent."""

import posixpath

from absl import flags

from flowley_jax.cli import parse_flags
from flowley_jax.config import ExperimentConfig
from flowley_jax.config_flag import experiment_flag
from flowley_jax.errors import FlowleyError
from flowley_jax.training.sharding import check_sizes, mesh_sizes
from launch.job import Job


def read_config(job: Job) -> ExperimentConfig:
    """Return the job's configuration with its overrides.

    Raises:
      FlowleyError: the file does not exist, or an override is not a valid value.
    """
    command = ["launch", f"--config={job.config}", *job.overrides]
    values = flags.FlagValues()
    config = experiment_flag("Training configuration.", values=values)
    parse_flags(command, values, config)
    return config.value


def check_devices(config: ExperimentConfig, devices: int, *, machines: int, slices: int = 1) -> None:
    """Check that mesh, batch and heads divide evenly over the devices, and the batch over the machines.

    Args:
      config: configuration of the training.
      devices: number of devices, the same on every machine.
      machines: number of machines, each of which runs one process.
      slices: number of TPU slices.

    Raises:
      FlowleyError: they do not.
    """
    sizes = mesh_sizes(config.mesh, devices, slices=slices)
    check_sizes(config.model, config.data.batch_size, sizes)
    local, tensor = devices // machines, sizes["tensor"]
    if local % tensor and tensor % local:
        raise FlowleyError(
            f"mesh.tensor={tensor} must divide the {local} devices of each machine or be a multiple of them: "
            "otherwise two machines would read parts of the same rows"
        )


def check_mounted(job: Job, config: ExperimentConfig, mount: str) -> None:
    """Check that the run and its records are below the mounted bucket, the only folder that machines share.

    Raises:
      FlowleyError: one of them is elsewhere, or the mount is not a folder of its own.
    """
    if not mount.startswith("/") or posixpath.normpath(mount).strip("/") == "":
        raise FlowleyError(f"mount={mount!r} must be an absolute path below /")
    folders = {"workdir": job.workdir}
    if not config.data.generate:
        folders["--set=--config.data.records"] = config.data.records
    is_overridden = any("data.records" in override for override in job.overrides)
    for name, folder in folders.items():
        if not posixpath.normpath(folder).startswith(posixpath.normpath(mount) + "/"):
            origin = "" if is_overridden or name == "workdir" else " (from the configuration file)"
            raise FlowleyError(
                f"{name}={folder}{origin} must be below mount={mount}, the only folder that machines share"
            )
