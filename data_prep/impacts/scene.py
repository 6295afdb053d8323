"""The scene of a clip, drawn at random from the seed of the clip."""

import dataclasses

import numpy as np

from data_prep.impacts.materials import MATERIALS, Material
from data_prep.impacts.motions import MIN_GAP, Hops, bouncing, striking, swinging

SIZE = 96
# Share of scenes with a second object.
SECOND_OBJECT_SHARE = 0.3
# Share of scenes with a continuous sound, and how many of these have no other sound.
CONTINUOUS_SHARE = 0.2
CONTINUOUS_ONLY_SHARE = 0.3
# Share of scenes with silent shapes.
DISTRACTOR_SHARE = 0.35
MAX_IMPACTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actor:
    """An object whose contacts make a sound.

    Attributes:
      motion: "bounces" (on the floor), "strikes" (a mallet on a block) or "swings" (against a post).
      shape: "ball" or "cube".
      material: its material.
      hops: its motion.
      x, y: contact point in pixels, which the object touches at the times of its hops.
      radius: radius in pixels.
      drift: sideways speed of a bouncing object in px/s.
      side: side of the post on which a pendulum hangs, −1 or 1.
      tint: RGB offset from the material's colour.
      tuning: factor on the material's pitch.
    """

    motion: str
    shape: str
    material: Material
    hops: Hops
    x: float
    y: float
    radius: float
    drift: float
    side: int
    tint: tuple[float, float, float]
    tuning: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drone:
    """A continuous sound with a visible motion.

    Attributes:
      kind: "wheel" (the pitch of a hum follows the rotation) or "saw" (the loudness follows the stroke).
      x, y: centre in pixels.
      radius: radius of the wheel, or amplitude of the saw, in pixels.
      rate: mean rotations or strokes per second.
      depth, period, phase: relative depth, period in seconds and phase of the rate's variation.
      pitch: frequency of the hum in Hz at the mean rate.
    """

    kind: str
    x: float
    y: float
    radius: float
    rate: float
    depth: float
    period: float
    phase: float
    pitch: float

    def speed(self, t: np.ndarray) -> np.ndarray:
        """Return the rotations (wheel) or strokes (saw) per second at times t."""
        return self.rate * (1.0 + self.depth * np.sin(2.0 * np.pi * t / self.period + self.phase))

    def turns(self, t: np.ndarray) -> np.ndarray:
        """Return the rotations or strokes since t = 0, the integral of `speed`."""
        swing = self.depth * self.period / (2.0 * np.pi)
        start = np.cos(self.phase)
        return self.rate * (t + swing * (start - np.cos(2.0 * np.pi * t / self.period + self.phase)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distractor:
    """A silent shape that drifts in the background, in pixels and px/s."""

    x: float
    y: float
    vx: float
    vy: float
    radius: float
    colour: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that determines the picture and sound of one clip."""

    seconds: float
    actors: tuple[Actor, ...]
    drone: Drone | None
    distractors: tuple[Distractor, ...]
    floor: float
    floor_colour: tuple[float, float, float]
    wall_colour: tuple[float, float, float]
    light: float

    @property
    def impacts(self) -> list[tuple[float, float, Actor]]:
        """Impacts in order of time: time in seconds, strength in (0, 1], actor."""
        impacts = [
            (float(time), float(strength), actor)
            for actor in self.actors
            for time, strength in zip(actor.hops.times, actor.hops.strengths, strict=True)
        ]
        return sorted(impacts, key=lambda impact: impact[0])


def draw_scene(rng: np.random.Generator, seconds: float) -> Scene:
    """Draw a scene whose impacts are at least MIN_GAP apart."""
    floor = rng.uniform(72.0, 84.0)
    drone_on = rng.random() < CONTINUOUS_SHARE
    drone_only = drone_on and rng.random() < CONTINUOUS_ONLY_SHARE
    count = 0 if drone_only else 2 if rng.random() < SECOND_OBJECT_SHARE else 1
    slots = rng.permutation([22.0, 48.0, 74.0])
    actors = _actors(rng, seconds, floor, slots[:count])
    drone = _drone(rng, slots[2]) if drone_on else None
    distractors = ()
    if rng.random() < DISTRACTOR_SHARE:
        distractors = tuple(_distractor(rng) for _ in range(rng.integers(1, 3)))
    return Scene(
        seconds=seconds,
        actors=actors,
        drone=drone,
        distractors=distractors,
        floor=floor,
        floor_colour=_shade(rng, 0.18, 0.5),
        wall_colour=_shade(rng, 0.45, 0.95),
        light=rng.uniform(0.8, 1.1),
    )


def _actors(rng: np.random.Generator, seconds: float, floor: float, slots: np.ndarray) -> tuple[Actor, ...]:
    """Draw one actor per slot, redrawing until their impacts fit.

    Only the actors are drawn again, which does not change the shares of the kinds of scenes.
    """
    limit = MAX_IMPACTS * max(1.0, seconds / 4.0)
    while True:
        actors = tuple(_actor(rng, seconds, floor, x, len(slots)) for x in slots)
        times = np.sort(np.concatenate([np.zeros(0), *(actor.hops.times for actor in actors)]))
        if not actors or (2 <= len(times) <= limit and np.diff(times).min() >= MIN_GAP):
            return actors


def _actor(rng: np.random.Generator, seconds: float, floor: float, x: float, count: int) -> Actor:
    material = MATERIALS[rng.choice(sorted(MATERIALS))]
    radius = rng.uniform(6.0, 8.5 if count > 1 else 11.0)
    motion = rng.choice(["bounces", "strikes", "swings"], p=[0.45, 0.3, 0.25])
    x = x + rng.uniform(-5.0, 5.0)
    side, y = (1 if x < SIZE / 2 else -1), floor
    if motion == "bounces":
        hops = bouncing(
            rng, seconds, height=rng.uniform(28.0, floor - 2.2 * radius), restitution=material.restitution
        )
    elif motion == "strikes":
        y = floor - rng.uniform(6.0, 14.0)
        hops = striking(rng, seconds, height=rng.uniform(16.0, 30.0))
    else:
        y = floor - rng.uniform(14.0, 26.0)
        hops = swinging(rng, seconds, height=rng.uniform(14.0, 26.0))
    return Actor(
        motion=str(motion),
        shape=str(rng.choice(["ball", "cube"])),
        material=material,
        hops=hops,
        x=x,
        y=y,
        radius=radius,
        drift=rng.uniform(-4.0, 4.0),
        side=side,
        tint=tuple(rng.uniform(-0.08, 0.08, 3)),
        tuning=float(np.exp(rng.uniform(-0.15, 0.15))),
    )


def _drone(rng: np.random.Generator, x: float) -> Drone:
    kind = str(rng.choice(["wheel", "saw"]))
    return Drone(
        kind=kind,
        x=x,
        y=rng.uniform(20.0, 38.0),
        radius=rng.uniform(10.0, 15.0),
        rate=rng.uniform(0.5, 1.1) if kind == "wheel" else rng.uniform(0.35, 0.8),
        depth=rng.uniform(0.3, 0.7),
        period=rng.uniform(2.0, 5.0),
        phase=rng.uniform(0.0, 2.0 * np.pi),
        pitch=rng.uniform(110.0, 220.0),
    )


def _distractor(rng: np.random.Generator) -> Distractor:
    return Distractor(
        x=rng.uniform(0.0, SIZE),
        y=rng.uniform(5.0, 45.0),
        vx=rng.uniform(-14.0, 14.0),
        vy=rng.uniform(-4.0, 4.0),
        radius=rng.uniform(4.0, 9.0),
        colour=_shade(rng, 0.3, 0.9),
    )


def _shade(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    grey = rng.uniform(low, high)
    red, green, blue = np.clip(grey + rng.uniform(-0.1, 0.1, 3), 0.0, 1.0)
    return float(red), float(green), float(blue)
