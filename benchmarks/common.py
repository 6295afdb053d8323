"""Helpers of several benchmarks. This module imports neither JAX nor PyTorch."""

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the duration of a call in seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def header(benchmark: str) -> dict[str, str]:
    """Return the date and the command line of a benchmark, for its figures."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join([f"python -m benchmarks.{benchmark}", *sys.argv[1:]]),
    }


def host() -> str:
    """Return a description of the processor."""
    return f"{os.cpu_count()} cores, {platform.machine()}"
