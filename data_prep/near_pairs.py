"""Pairs of 256-bit fingerprints that differ in few bits, found without comparing all with all.

A fingerprint has 16 bands of 16 bits. Two that differ in at most 15 bits agree in a band at least, so that
only those that agree in one are compared. Where more than `popular` agree, as in the band of a black border,
they are compared only if they agree in a second or third band in which fewer do; which keeps the work linear.
"""

from collections.abc import Iterator

import numpy as np

THRESHOLD = 15
POPULAR = 200
_BANDS = 16
# How many bands are looked at together: 696 groupings of the most popular at most.
_DEPTH = 3


def near_pairs(codes: np.ndarray, *, threshold: int = THRESHOLD, popular: int = POPULAR) -> np.ndarray:
    """Pairs at most `threshold` bits apart that agree in up to three bands in which at most `popular` agree.

    With at most `popular` codes, and a threshold of at most 15, these are all pairs that near.

    Args:
      codes: (N, 4) uint64.

    Returns:
      (P, 2) int64, indices i < j in ascending order; equal codes are pairs as well.
    """
    bands, found = codes.view(np.uint16), [np.empty((0, 2), np.int64)]
    for first, second in _candidates(bands, np.arange(len(codes)), 0, _DEPTH, popular):
        near = np.bitwise_count(codes[first] ^ codes[second]).sum(axis=1) <= threshold
        found.append(np.sort(np.stack([first[near], second[near]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def codes_of(digits: list[str]) -> np.ndarray:
    """Fingerprints of 64 hexadecimal digits as (N, 4) uint64."""
    return np.frombuffer(bytes.fromhex("".join(digits)), np.uint64).reshape(-1, 4)


def _candidates(
    bands: np.ndarray, members: np.ndarray, start: int, depth: int, popular: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Members that agree in one of the bands from `start` on, or in several where too many agree in one."""
    for band in range(start, _BANDS):
        ordered = members[np.argsort(bands[members, band], kind="stable")]
        values = bands[ordered, band]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        sizes = np.diff(np.r_[starts, len(values)])
        yield from _pairs_within(ordered, starts, sizes, popular)
        if depth > 1:
            for place in np.flatnonzero(sizes > popular):
                group = ordered[starts[place] : starts[place] + sizes[place]]
                yield from _candidates(bands, group, band + 1, depth - 1, popular)


def _pairs_within(
    ordered: np.ndarray, starts: np.ndarray, sizes: np.ndarray, popular: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs in groups that are not too large, at one distance within it at a time: memory stays linear."""
    ends = np.repeat(np.where(sizes <= popular, starts + sizes, 0), sizes)
    places = np.arange(len(ordered))
    for distance in range(1, popular):
        places = places[places + distance < ends[places]]
        if not len(places):
            return
        yield ordered[places], ordered[places + distance]
