"""PSCA's soft masks as small multiples over depth."""

import numpy as np

from flowley_jax.report.images import heat_map, palette

COLOURS = "cividis"


def masks_section(masks: np.ndarray) -> str:
    """The section on the soft masks (N2, Ta, Tv) in [0, 1], first layer first.

    Raises ValueError if `masks` has another rank or no layer.
    """
    if masks.ndim != 3 or not masks.size:
        raise ValueError(f"{masks.shape=} must be (layers, audio frames, video frames)")
    tiles = "".join(_tile(mask, layer) for layer, mask in enumerate(masks, start=1))
    stops = ",".join(f"rgb({red} {green} {blue})" for red, green, blue in palette(COLOURS)[::51])
    return (
        "<section><h2>Where each layer may look</h2>"
        "<p>PSCA's soft mask in the single-stream layers, from the first to the last: video time runs to the "
        "right, sound time runs down. A wide band lets a moment of sound draw on the whole picture; a narrow "
        "diagonal ties it to the frames of that moment.</p>"
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
