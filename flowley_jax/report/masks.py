"""The section on PSCA's soft masks, one picture per layer."""

import numpy as np

from flowley_jax.report.images import heat_map, palette

COLOURS = "cividis"


def masks_section(masks: np.ndarray) -> str:
    """Return the HTML section on soft masks.

    Args:
      masks: (N2, Ta, Tv) in [0, 1], first layer first.

    Raises:
      ValueError: `masks` is not three-dimensional, or is empty.
    """
    if masks.ndim != 3 or not masks.size:
        raise ValueError(f"{masks.shape=} must be (layers, audio frames, video frames)")
    tiles = "".join(_tile(mask, layer) for layer, mask in enumerate(masks, start=1))
    stops = ",".join(f"rgb({red} {green} {blue})" for red, green, blue in palette(COLOURS)[::51])
    return (
        "<section><h2>What each layer may attend to</h2>"
        "<p>PSCA's soft mask in the single-stream layers, from the first to the last. Video time runs to "
        "the right, and sound time runs down. With a wide band, each moment of sound attends to much of the "
        "video; with a narrow diagonal, only to the frames of that moment.</p>"
        f'<div class="masks">{tiles}</div>'
        f'<p class="scale"><span>0</span><i style="background:linear-gradient(90deg,{stops})"></i>'
        "<span>1</span></p></section>"
    )


def _tile(mask: np.ndarray, layer: int) -> str:
    image = heat_map(mask, low=0.0, high=1.0, colours=COLOURS)
    return (
        f'<figure><img alt="soft mask of layer {layer}" src="{image}">'
        f"<figcaption>layer {layer}</figcaption></figure>"
    )
