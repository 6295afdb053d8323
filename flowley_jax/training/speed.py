"""What the devices of a run could do, to compare with what they do."""

import dataclasses
import logging

import jax

from flowley_jax.config import ExperimentConfig
from flowley_jax.training.ahead import Lengths, step_flops
from flowley_jax.training.chips import chip_of

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Speed:
    """FLOPs of one step, and peak bfloat16 FLOPs per second of all devices: what MFU is made of."""

    flops: float
    peak: float


def speed_of(config: ExperimentConfig, lengths: Lengths) -> Speed | None:
    """Of this run; None on devices whose peak is not known, CPUs among them."""
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is None:
        return None
    try:
        flops = step_flops(config, lengths)
    except RuntimeError as error:
        log.info("no MFU: FLOPs are counted on a CPU device, and JAX_PLATFORMS leaves none (%s)", error)
        return None
    return Speed(flops=flops, peak=chip.peak_flops * jax.device_count())
