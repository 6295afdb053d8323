"""Materials of the objects: how they look and how they ring."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """The look and sound of a material.

    Attributes:
      name: adjective for captions.
      colour: mean colour of the objects, RGB in [0, 1].
      gloss: strength of the highlight.
      pitch: frequency in Hz of the lowest mode of an object with a radius of 8 px; larger objects are lower.
      modes: frequencies of the modes relative to the lowest one.
      decay: time constant of the lowest mode in seconds.
      noise: share of contact noise in the sound.
      restitution: ratio of the speeds after and before a bounce.
    """

    name: str
    colour: tuple[float, float, float]
    gloss: float
    pitch: float
    modes: tuple[float, ...]
    decay: float
    noise: float
    restitution: float


MATERIALS = {
    material.name: material
    for material in (
        Material(
            name="glass",
            colour=(0.45, 0.85, 0.95),
            gloss=0.9,
            pitch=2300.0,
            modes=(1.0, 1.53, 2.11),
            decay=0.075,
            noise=0.15,
            restitution=0.80,
        ),
        Material(
            name="wooden",
            colour=(0.72, 0.48, 0.22),
            gloss=0.15,
            pitch=620.0,
            modes=(1.0, 2.57, 4.95),
            decay=0.030,
            noise=0.35,
            restitution=0.72,
        ),
        Material(
            name="metal",
            colour=(0.62, 0.64, 0.72),
            gloss=0.7,
            pitch=1150.0,
            modes=(1.0, 1.41, 2.76, 4.07),
            decay=0.095,
            noise=0.12,
            restitution=0.76,
        ),
        Material(
            name="rubber",
            colour=(0.85, 0.20, 0.25),
            gloss=0.3,
            pitch=190.0,
            modes=(1.0, 1.9),
            decay=0.035,
            noise=0.25,
            restitution=0.83,
        ),
        Material(
            name="stone",
            colour=(0.42, 0.40, 0.36),
            gloss=0.05,
            pitch=3600.0,
            modes=(1.0, 1.27, 1.74),
            decay=0.014,
            noise=0.8,
            restitution=0.66,
        ),
    )
}
