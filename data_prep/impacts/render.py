"""Render the video: antialiased shapes in front of a wall and a floor."""

from collections.abc import Callable, Sequence

import numpy as np

from data_prep.impacts.scene import SIZE, Actor, Drone, Scene

FPS = 24.0
BLOCK_COLOUR = (0.25, 0.22, 0.2)
POST_COLOUR = (0.3, 0.3, 0.34)

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def render(scene: Scene) -> np.ndarray:
    """Return frames, uint8 (T, SIZE, SIZE, 3), at FPS; frame n shows the time n / FPS."""
    t = np.arange(round(scene.seconds * FPS)) / FPS
    canvas = _Canvas(scene, len(t))
    for shape in scene.distractors:
        x = (shape.x + shape.vx * t) % SIZE
        canvas.ball(x, shape.y + shape.vy * t, shape.radius, shape.colour, gloss=0.0)
    if scene.drone is not None:
        _paint_drone(canvas, scene.drone, t)
    for actor in scene.actors:
        _paint_actor(canvas, actor, t)
    return canvas.frames()


def _paint_actor(canvas: "_Canvas", actor: Actor, t: np.ndarray) -> None:
    colour = tuple(np.clip(np.add(actor.material.colour, actor.tint), 0.0, 1.0))
    distance, r, gloss = actor.hops.distance(t), actor.radius, actor.material.gloss
    if actor.motion == "bounces":
        travelled = np.minimum(t, actor.hops.times[-1])
        x, y = actor.x + actor.drift * travelled, actor.y - r - distance
        canvas.shape(actor.shape, x, y, r, colour, gloss)
    elif actor.motion == "strikes":
        canvas.box(actor.x - 11.0, actor.y, actor.x + 11.0, canvas.floor, BLOCK_COLOUR)
        y = actor.y - r - distance
        canvas.bar(actor.x + np.zeros_like(t), y, actor.x + actor.side * 20.0, y - 12.0, 1.3, POST_COLOUR)
        canvas.shape(actor.shape, actor.x + np.zeros_like(t), y, r, colour, gloss)
    else:
        canvas.box(actor.x - 2.0, actor.y - 8.0, actor.x + 2.0, canvas.floor, POST_COLOUR)
        x = actor.x + actor.side * (2.0 + r + distance)
        y = actor.y - 0.012 * distance**2
        canvas.bar(x, y, actor.x + actor.side * (2.0 + r), actor.y - 52.0, 0.8, POST_COLOUR)
        canvas.shape(actor.shape, x, y, r, colour, gloss)


def _paint_drone(canvas: "_Canvas", drone: Drone, t: np.ndarray) -> None:
    turns = drone.turns(t)
    if drone.kind == "wheel":
        canvas.ball(
            drone.x + np.zeros_like(t), drone.y + np.zeros_like(t), drone.radius, (0.85, 0.85, 0.8), 0.0
        )
        for spoke in range(3):
            angle = 2.0 * np.pi * (turns + spoke / 3.0)
            reach = drone.radius - 1.0
            x, y = drone.x + reach * np.cos(angle), drone.y + reach * np.sin(angle)
            canvas.bar(x, y, drone.x, drone.y, 1.8, (0.15, 0.3, 0.55))
        return
    canvas.box(drone.x - 6.0, drone.y, drone.x + 6.0, drone.y + 14.0, (0.6, 0.45, 0.25))
    x = drone.x + drone.radius * np.sin(2.0 * np.pi * turns)
    canvas.bar(x - 14.0, drone.y + np.zeros_like(t), x + 14.0, drone.y, 1.8, (0.7, 0.72, 0.75))


class _Canvas:
    """Frames that are being painted, float32 (T, SIZE, SIZE, 3)."""

    def __init__(self, scene: Scene, count: int):
        self.floor = scene.floor
        lit = scene.light * (1.05 - 0.25 * _Y / SIZE)[..., None]
        wall = np.asarray(scene.wall_colour, np.float32) * lit
        ground = np.asarray(scene.floor_colour, np.float32) * lit
        below = np.clip(_Y - scene.floor + 0.5, 0.0, 1.0)[..., None]
        picture = wall * (1.0 - below) + ground * below
        self._frames = np.repeat(picture[None].astype(np.float32), count, axis=0)

    def frames(self) -> np.ndarray:
        """Return the frames as uint8."""
        return (np.clip(self._frames, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)

    def shape(
        self,
        kind: str,
        x: np.ndarray,
        y: np.ndarray,
        radius: float,
        colour: Sequence[float],
        gloss: float,
    ) -> None:
        """Paint a moving ball or cube."""
        if kind == "ball":
            self.ball(x, y, radius, colour, gloss)
            return
        half = 0.89 * radius
        for frame, (cx, cy) in enumerate(zip(x, y, strict=True)):
            self._paint(
                frame, cx, cy, radius + 2.0, colour, gloss, lambda dx, dy: half - np.maximum(abs(dx), abs(dy))
            )

    def ball(
        self, x: np.ndarray, y: np.ndarray, radius: float, colour: Sequence[float], gloss: float
    ) -> None:
        """Paint a moving ball."""
        for frame, (cx, cy) in enumerate(zip(x, y, strict=True)):
            self._paint(frame, cx, cy, radius + 2.0, colour, gloss, lambda dx, dy: radius - np.hypot(dx, dy))

    def bar(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x1: np.ndarray | float,
        y1: np.ndarray | float,
        half_width: float,
        colour: Sequence[float],
    ) -> None:
        """Paint a rod from a moving point (x, y) to (x1, y1), which may move too."""
        ends = np.broadcast_arrays(x, y, x1, y1)
        for frame, (ax, ay, bx, by) in enumerate(zip(*ends, strict=True)):
            ux, uy = bx - ax, by - ay
            length = ux * ux + uy * uy + 1e-9

            def depth(dx, dy, ux=ux, uy=uy, length=length, cx=0.5 * (bx - ax), cy=0.5 * (by - ay)):
                px, py = dx + cx, dy + cy
                along = np.clip((px * ux + py * uy) / length, 0.0, 1.0)
                return half_width - np.hypot(px - along * ux, py - along * uy)

            reach = 0.5 * np.sqrt(length) + half_width + 2.0
            self._paint(frame, 0.5 * (ax + bx), 0.5 * (ay + by), reach, colour, 0.0, depth)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Sequence[float]) -> None:
        """Paint a rectangle that does not move."""
        inside = np.clip(np.minimum(_X - left, right - _X) + 0.5, 0.0, 1.0)
        inside = inside * np.clip(np.minimum(_Y - top, bottom - _Y) + 0.5, 0.0, 1.0)
        alpha = inside[None, ..., None]
        self._frames += alpha * (np.asarray(colour, np.float32) - self._frames)

    def _paint(
        self,
        frame: int,
        cx: float,
        cy: float,
        reach: float,
        colour: Sequence[float],
        gloss: float,
        depth: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """Blend in `colour` where depth(dx, dy), the distance in pixels from the edge, is positive."""
        left, right = max(0, int(cx - reach)), min(SIZE, int(cx + reach) + 2)
        top, bottom = max(0, int(cy - reach)), min(SIZE, int(cy + reach) + 2)
        if left >= right or top >= bottom:
            return
        dx, dy = _X[top:bottom, left:right] - cx, _Y[top:bottom, left:right] - cy
        alpha = np.clip(depth(dx, dy) + 0.5, 0.0, 1.0)[..., None]
        shade = 1.0 - 0.35 * np.clip((dx + dy) / (2.0 * reach), -0.5, 1.0)
        shine = gloss * np.exp(-((dx + 0.35 * reach) ** 2 + (dy + 0.35 * reach) ** 2) / (0.08 * reach**2))
        painted = np.asarray(colour, np.float32) * shade[..., None] + 0.6 * shine[..., None]
        patch = self._frames[frame, top:bottom, left:right]
        patch += (alpha * (painted - patch)).astype(np.float32)
