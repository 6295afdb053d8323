"""Captions that name the objects, their materials and their actions."""

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
    """Return one sentence fragment in lower case, with random wording."""
    phrases = [_describe_actor(actor, rng) for actor in scene.actors]
    if scene.drone is not None:
        phrases.append(_describe_drone(scene.drone, rng))
    return str(rng.choice(_JOINTS)).join(phrases)


def _describe_actor(actor: Actor, rng: np.random.Generator) -> str:
    noun = "mallet" if actor.motion == "strikes" else actor.shape
    return f"a {actor.material.name} {noun} {rng.choice(_ACTIONS[actor.motion])}"


def _describe_drone(drone: Drone, rng: np.random.Generator) -> str:
    return str(rng.choice(_DRONES[drone.kind]))
