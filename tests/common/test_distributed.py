"""Errors of collectives between processes."""

import time

import jax
import pytest

from flowley_jax.common.distributed import processes_of_run
from flowley_jax.errors import FlowleyError

# As JAX raised it when the other one of two processes on CPUs was killed.
LOST = "UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:547] Connection closed by peer"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Return the waits of this process, which do not take place."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize(("index", "processes", "count"), [(0, 2, 1), (1, 2, 0), (0, 1, 0)])
def test_the_first_of_several_processes_ends_last(monkeypatch, waits, index, processes, count):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(FlowleyError, match=r"^refused$"), processes_of_run():
        raise FlowleyError("refused")
    assert len(waits) == count


def test_a_collective_that_fails_because_a_process_is_gone_says_so(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    message = r"^another process of this run has ended.*newest checkpoint \(UNKNOWN: Gloo AllGather failed"
    with pytest.raises(FlowleyError, match=message), processes_of_run():
        raise jax.errors.JaxRuntimeError(LOST)


@pytest.mark.parametrize(
    ("processes", "message"), [(1, LOST), (2, "RESOURCE_EXHAUSTED: Out of memory allocating 1024 bytes.")]
)
def test_other_errors_stay_as_they_are(monkeypatch, processes, message):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught, processes_of_run():
        raise jax.errors.JaxRuntimeError(message)
    assert str(caught.value) == message
