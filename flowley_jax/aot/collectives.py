"""Count the collectives of a compiled program by reading its text."""

import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
_BOUND = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?%?([\w.-]+(?:, ?%[\w.-]+)*)")


def count_collectives(program: str) -> dict[str, tuple[int, int]]:
    """Return the number of executions and the result bytes on one device, for each kind of collective.

    A loop body counts once per iteration if the bound is constant, and otherwise once.

    Args:
      program: text of a compiled module.
    """
    computations, entry = _computations(program)
    totals: dict[str, tuple[int, int]] = dict.fromkeys(KINDS, (0, 0))
    for kind, size, times in _visit(entry, 1, computations):
        count, total = totals[kind]
        totals[kind] = (count + times, total + times * size)
    return {kind: total for kind, total in totals.items() if total[0]}


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in program.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return computations, entry


def _visit(name: str, times: int, computations: dict[str, list[str]]) -> Iterator[tuple[str, int, int]]:
    for line in computations.get(name, ()):
        match = _COLLECTIVE.search(line)
        if match:
            starts = bool(match[3]) and match[2] != "all-reduce"
            yield match[2], _result_bytes(match[1], starts=starts), times
        trips = _trip_count(line, computations)
        for called in _CALLED.findall(line):
            for inner in re.split(r", ?%?", called):
                yield from _visit(inner, times * trips, computations)


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    condition = _CONDITION.search(line)
    lines = computations.get(condition[1], ()) if condition else ()
    bounds = [match[1] for match in map(_BOUND.search, lines) if match]
    counts_up = any("direction=LT" in text for text in lines)
    return int(bounds[0]) if len(bounds) == 1 and counts_up else 1


def _result_bytes(shapes: str, *, starts: bool) -> int:
    """Return the bytes of a result type; a collective's `-start` lists its operands before its results."""
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
        for kind, dims in re.findall(r"\b(\w+)\[([\d,]*)\]", shapes)
        # A scalar u32 is a handle of the runtime, not data.
        if not (kind == "u32" and not dims)
    ]
    return sum(sizes[len(sizes) // 2 :] if starts else sizes)
