"""Captions that name objects, materials and what they do."""

import numpy as np

from data_prep.impacts.scene import Actor, Drone, Scene

_ACTIONS = {
    "bounces": ("bounces on the floor", "is dropped and bounces", "falls and bounces"),
    "strikes": ("strikes a block", "hammers on a block", "taps on a block again and again"),
    "swings": ("swings against a post", "knocks on a post", "hits a post on every swing"),
}
_DRONES = {
    "wheel": ("a wheel hums", "a wheel spins and hums", "a humming wheel turns"),
    "saw": ("a saw moves back and forth", "someone saws wood", "a saw cuts"),
}
_JOINTS = (" while ", " and ", ", ")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence fragment in lower case, its wording drawn at random."""
    parts = [_actor(actor, rng) for actor in scene.actors]
    if scene.drone is not None:
        parts.append(_drone(scene.drone, rng))
    return str(rng.choice(_JOINTS)).join(parts)


def _actor(actor: Actor, rng: np.random.Generator) -> str:
    noun = "mallet" if actor.motion == "strikes" else actor.shape
    return f"a {actor.material.name} {noun} {rng.choice(_ACTIONS[actor.motion])}"


def _drone(drone: Drone, rng: np.random.Generator) -> str:
    return str(rng.choice(_DRONES[drone.kind]))
