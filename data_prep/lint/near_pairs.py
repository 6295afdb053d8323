"""Find pairs of 256-bit fingerprints that differ in few bits, without comparing every pair.

A fingerprint has 16 bands of 16 bits. Two fingerprints that differ in at most 15 bits agree in at least one
band, so only those that agree in a band are compared. Many can share a value, for example in the band of a
black border. If more than `popular` fingerprints share it, they are compared only if they also agree in a
second or third band that fewer share. This keeps the work linear.
"""

from collections.abc import Iterator

import numpy as np

THRESHOLD = 15
POPULAR = 200
_BANDS = 16
# Number of bands that are combined: at most 696 combinations for the most popular fingerprints.
_DEPTH = 3


def near_pairs(codes: np.ndarray, *, threshold: int = THRESHOLD, popular: int = POPULAR) -> np.ndarray:
    """Return pairs of fingerprints that differ in at most `threshold` bits.

    The pairs must agree in one to three bands in which at most `popular` fingerprints agree. With at most
    `popular` fingerprints and a threshold of at most 15, these are all near pairs.

    Args:
      codes: (N, 4) uint64, the fingerprints.
      threshold: largest number of different bits.
      popular: largest group of fingerprints that are all compared with each other.

    Returns:
      (P, 2) int64, indices i < j in ascending order; equal fingerprints are pairs too.
    """
    bands, pairs = codes.view(np.uint16), [np.empty((0, 2), np.int64)]
    for first, second in _candidates(bands, np.arange(len(codes)), 0, _DEPTH, popular):
        near = np.bitwise_count(codes[first] ^ codes[second]).sum(axis=1) <= threshold
        pairs.append(np.sort(np.stack([first[near], second[near]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def codes_of(digits: list[str]) -> np.ndarray:
    """Return fingerprints of 64 hexadecimal digits as (N, 4) uint64."""
    return np.frombuffer(bytes.fromhex("".join(digits)), np.uint64).reshape(-1, 4)


def _candidates(
    bands: np.ndarray, members: np.ndarray, start: int, depth: int, popular: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield members that agree in one band from `start` on, or in several if one band is too popular."""
    for band in range(start, _BANDS):
        ordered = members[np.argsort(bands[members, band], kind="stable")]
        values = bands[ordered, band]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        sizes = np.diff(np.r_[starts, len(values)])
        yield from _pairs_within(ordered, starts, sizes, popular)
        if depth > 1:
            for index in np.flatnonzero(sizes > popular):
                group = ordered[starts[index] : starts[index] + sizes[index]]
                yield from _candidates(bands, group, band + 1, depth - 1, popular)


def _pairs_within(
    ordered: np.ndarray, starts: np.ndarray, sizes: np.ndarray, popular: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of each group that is not too large, one distance at a time to keep memory linear."""
    ends = np.repeat(np.where(sizes <= popular, starts + sizes, 0), sizes)
    indices = np.arange(len(ordered))
    for distance in range(1, popular):
        indices = indices[indices + distance < ends[indices]]
        if not len(indices):
            return
        yield ordered[indices], ordered[indices + distance]
