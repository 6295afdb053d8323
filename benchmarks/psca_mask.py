"""Draw the masks that docs/psca.md shows.

Usage: python -m benchmarks.psca_mask
"""

from pathlib import Path

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.files import atomic_write
from flowley_jax.model import ModelConfig

AUDIO_LENGTH, VIDEO_LENGTH, SECONDS = 250, 64, 8.0
# Share of the clip to draw: two seconds, in which single frames are visible.
SHOWN = 0.25

_OUT = flags.DEFINE_string("out", "docs/images/psca_mask.png", "Picture to write.")


def main() -> int:
    """Draw the mask of the first, a middle and the last block of the published network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = ModelConfig()
    mask = config.soft_mask(AUDIO_LENGTH, VIDEO_LENGTH)
    scales = config.fade_scales
    blocks = (0, len(scales) // 2, len(scales) - 1)
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(blocks), sharey=True)
    image = None
    for axis, block in zip(axes, blocks, strict=True):
        matrix = mask.matrix(scales[block], AUDIO_LENGTH, VIDEO_LENGTH)
        shown = matrix[: int(SHOWN * AUDIO_LENGTH), : int(SHOWN * VIDEO_LENGTH)]
        extent = (0, SHOWN * VIDEO_LENGTH, SHOWN * SECONDS, 0)
        image = axis.imshow(shown, aspect="auto", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        axis.set_title(f"block {block + 1} of {len(scales)}, β = {scales[block]:.2f}")
        axis.set_xlabel("video frame")
    axes[0].set_ylabel("time of the audio (s)")
    figure.colorbar(image, ax=axes, label="mask M")
    path = Path(_OUT.value)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    run_main(main)
