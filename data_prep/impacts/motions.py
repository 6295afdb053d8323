"""The motion of objects between contacts, and the times of the contacts."""

import dataclasses

import numpy as np

# Minimum time between two contacts, in seconds.
MIN_GAP = 0.16
# Time without contacts at both ends of a clip, in seconds.
MARGIN = 0.12
# Duration of a mallet's first lift, in seconds.
LIFT = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hops:
    """Arcs between contacts with a surface.

    Attributes:
      times: times of the contacts in seconds, ascending; the object rests after the last one.
      heights: largest distance from the surface, in pixels, in the arc before each contact.
      first_span: duration in seconds of the full first arc; only its falling half is seen.
      parabolic: whether the arcs are parabolas (free flight) rather than half sines (swings).
    """

    times: np.ndarray
    heights: np.ndarray
    first_span: float
    parabolic: bool

    @property
    def strengths(self) -> np.ndarray:
        """Relative loudness of the contacts in (0, 1]: impact speed divided by the largest one."""
        spans = np.diff(self.times, prepend=self.times[0] - self.first_span)
        speeds = self.heights / spans
        return np.clip(speeds / speeds.max(), 0.25, 1.0)

    def distance(self, t: np.ndarray) -> np.ndarray:
        """Return the distance from the surface in pixels at times t in seconds."""
        distance = np.zeros_like(t)
        begin = self.times[0] - self.first_span
        for end, height in zip(self.times, self.heights, strict=True):
            phase = (t - begin) / (end - begin)
            arc = 4.0 * phase * (1.0 - phase) if self.parabolic else np.sin(np.pi * phase)
            inside = (phase >= 0.0) & (phase < 1.0)
            distance = np.where(inside, height * arc, distance)
            begin = end
        # The object is held at the top until the falling half of the first arc begins.
        top = self.times[0] - 0.5 * self.first_span
        return np.where(t < top, self.heights[0], distance)


def bouncing(rng: np.random.Generator, seconds: float, *, height: float, restitution: float) -> Hops:
    """Return the hops of a dropped object: each is shorter by the restitution, until the object rests."""
    span = rng.uniform(0.75, 1.15)
    first = rng.uniform(max(MARGIN, 0.5 * span), 1.4)
    keep = restitution * rng.uniform(0.93, 1.03)
    times, spans = [first], [span]
    while True:
        span *= keep
        if span < MIN_GAP + 0.06 or times[-1] + span > seconds - MARGIN or len(times) == 7:
            break
        times.append(times[-1] + span)
        spans.append(span)
    heights = height * (np.asarray(spans) / spans[0]) ** 2
    return Hops(times=np.asarray(times), heights=heights, first_span=spans[0], parabolic=True)


def striking(rng: np.random.Generator, seconds: float, *, height: float) -> Hops:
    """Return blows of a mallet at irregular intervals; before longer ones, the mallet is lifted higher."""
    times = [rng.uniform(0.4, 1.2)]
    while True:
        following = times[-1] + rng.uniform(0.32, 1.25)
        if following > seconds - MARGIN or len(times) == 6:
            break
        times.append(following)
    spans = np.diff(times, prepend=times[0] - LIFT)
    heights = height * np.clip(0.55 + 0.45 * spans, 0.6, 1.0) * rng.uniform(0.85, 1.0, len(times))
    return Hops(times=np.asarray(times), heights=heights, first_span=LIFT, parabolic=False)


def swinging(rng: np.random.Generator, seconds: float, *, height: float) -> Hops:
    """Return the hits of a pendulum against a post, once per period and a little weaker each time."""
    period = rng.uniform(0.5, 1.0)
    count = int((seconds - MARGIN - 0.45 * period) / period)
    first = rng.uniform(0.55 * period, max(0.56 * period, seconds - MARGIN - count * period))
    times = np.arange(first, seconds - MARGIN, period)[:6]
    heights = height * 0.93 ** np.arange(len(times))
    return Hops(times=times, heights=heights, first_span=period, parabolic=False)
