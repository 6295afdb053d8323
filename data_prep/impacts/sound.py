"""Synthesise the sound: decaying modes at every impact, and a softer drone for continuous motion."""

import numpy as np
from scipy.signal import butter, sosfilt

from data_prep.impacts.scene import Actor, Drone, Scene

SAMPLE_RATE = 16000
PEAK = 0.8
RING_SECONDS = 0.5
NOISE_DECAY = 0.004
DRONE_LEVEL = 0.035


def synthesise(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return a mono wave, float32 (N,) in [-1, 1]; an impact starts at the sample of its true time."""
    count = round(scene.seconds * SAMPLE_RATE)
    wave = np.zeros(count + int(RING_SECONDS * SAMPLE_RATE))
    for time, strength, actor in scene.impacts:
        ring = _ring(actor, rng) * strength
        start = round(time * SAMPLE_RATE)
        wave[start : start + len(ring)] += ring[: len(wave) - start]
    wave = PEAK * wave[:count] / max(1e-9, np.abs(wave).max()) if scene.actors else wave[:count]
    if scene.drone is not None:
        level = DRONE_LEVEL if scene.actors else 3.0 * DRONE_LEVEL
        wave = wave + level * _drone(scene.drone, count, rng)
    wave = wave + 2e-4 * rng.standard_normal(count)
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def _ring(actor: Actor, rng: np.random.Generator) -> np.ndarray:
    material = actor.material
    t = np.arange(int(RING_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = material.pitch * actor.tuning * (8.0 / actor.radius) ** 0.7
    ring = np.zeros_like(t)
    for order, ratio in enumerate(material.modes):
        frequency = pitch * ratio
        if frequency < 0.46 * SAMPLE_RATE:
            ring += (
                0.75**order * np.cos(2.0 * np.pi * frequency * t) * np.exp(-t * ratio**0.5 / material.decay)
            )
    noise = rng.standard_normal(len(t)) * np.exp(-t / NOISE_DECAY)
    return (1.0 - material.noise) * ring / len(material.modes) ** 0.5 + material.noise * noise


def _drone(drone: Drone, count: int, rng: np.random.Generator) -> np.ndarray:
    t = np.arange(count) / SAMPLE_RATE
    if drone.kind == "wheel":
        cycles = drone.pitch * drone.turns(t) / drone.rate
        order = np.arange(1, 7)[:, None]
        return np.sum(np.sin(2.0 * np.pi * order * cycles) / order, axis=0)
    band = butter(2, (500.0, 2500.0), "bandpass", fs=SAMPLE_RATE, output="sos")
    stroke = np.abs(np.cos(2.0 * np.pi * drone.turns(t)) * drone.speed(t)) / (
        drone.rate * (1.0 + drone.depth)
    )
    return 3.0 * stroke * sosfilt(band, rng.standard_normal(count))
