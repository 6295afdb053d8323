"""How objects move between contacts, and when the contacts happen."""

import dataclasses

import numpy as np

MIN_GAP = 0.16
MARGIN = 0.12
LIFT = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hops:
    """Arcs between contacts with a surface.

    Attributes:
      times: contact instants in seconds, ascending; the object rests after the last one.
      heights: largest distance from the surface, in pixels, of the arc before each contact; the first arc
        is only its falling half.
      first_span: duration in seconds of the whole arc whose falling half comes before the first contact.
      parabolic: free flight; otherwise the arc is a swing (a sine).
    """

    times: np.ndarray
    heights: np.ndarray
    first_span: float
    parabolic: bool

    @property
    def strengths(self) -> np.ndarray:
        """Relative loudness of the contacts in (0, 1]: the speed of arrival over the largest one."""
        spans = np.diff(self.times, prepend=self.times[0] - self.first_span)
        speeds = self.heights / spans
        return np.clip(speeds / speeds.max(), 0.25, 1.0)

    def distance(self, t: np.ndarray) -> np.ndarray:
        """Distance from the surface at times t, in pixels."""
        distance = np.zeros_like(t)
        begin = self.times[0] - self.first_span
        for end, height in zip(self.times, self.heights, strict=True):
            phase = (t - begin) / (end - begin)
            arc = 4.0 * phase * (1.0 - phase) if self.parabolic else np.sin(np.pi * phase)
            inside = (phase >= 0.0) & (phase < 1.0)
            distance = np.where(inside, height * arc, distance)
            begin = end
        # Until half of the first arc the object is held at its top.
        top = self.times[0] - 0.5 * self.first_span
        return np.where(t < top, self.heights[0], distance)


def bouncing(rng: np.random.Generator, seconds: float, *, height: float, restitution: float) -> Hops:
    """A dropped object: each hop is shorter than the last by the restitution, until it rests."""
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
    """Blows at irregular intervals; a longer pause lifts the mallet higher."""
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
    """A pendulum that knocks against a post once a period and swings a little less each time."""
    period = rng.uniform(0.5, 1.0)
    count = int((seconds - MARGIN - 0.45 * period) / period)
    first = rng.uniform(0.55 * period, max(0.56 * period, seconds - MARGIN - count * period))
    times = np.arange(first, seconds - MARGIN, period)[:6]
    heights = height * 0.93 ** np.arange(len(times))
    return Hops(times=times, heights=heights, first_span=period, parabolic=False)
