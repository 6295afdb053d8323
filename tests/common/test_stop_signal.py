"""Signals: a request to stop, and the end at once; Ctrl-C during imports."""

import os
import signal
import subprocess
import sys

import children
import pytest

# Signals arrive while the main thread is in code that Python cannot interrupt, as a compiler is.
BUSY = """
import hashlib, logging, signal, sys
from flowley_jax.common import stop_signal
from flowley_jax.common.interrupt import end_imports_on_interrupt
logging.basicConfig(level=logging.INFO, format="%(message)s")
if sys.argv[1] == "command":
    end_imports_on_interrupt()
stop_signal._SAME_REQUEST_SECONDS = float(sys.argv[2])
with stop_signal.StopSignal():
    print("ready", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


def _wait_for(process, text):
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"ended without {text!r}")


@pytest.mark.parametrize(
    ("number", "code", "last_line"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM, ""),
        (signal.SIGINT, 130, "interrupted; run the same command again to continue\n"),
    ],
)
def test_a_second_signal_ends_a_busy_program_at_once(number, code, last_line):
    command = [sys.executable, "-c", BUSY, "command", "0"]
    with children.started(command, limit=100, stderr=subprocess.PIPE, text=True) as process:
        _wait_for(process, "ready")
        process.send_signal(number)
        _wait_for(process, "stopping after the current step")
        process.send_signal(number)
        assert process.stderr.read() == last_line
        assert process.wait() == code


# The receiver is a thread.
FIRST = """
import os, signal, sys, time
from flowley_jax.common.stop_signal import StopSignal
number = signal.Signals[sys.argv[1]]
with StopSignal() as stop:
    assert not stop.check()
    os.kill(os.getpid(), number)
    # A launcher forwards what the whole group has got already.
    os.kill(os.getpid(), number)
    while not stop.check():
        time.sleep(0.01)
assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
print("went on")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_arrives_twice_is_one_request(name):
    result = children.run([sys.executable, "-c", FIRST, name], limit=100)
    assert (result.returncode, result.stdout) == (0, "went on\n"), result.stderr


# Takes the place of a library whose import swallows exceptions.
SWALLOWING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except BaseException:
    pass
"""


@pytest.mark.parametrize("module", ["flowley_jax.train", "data_prep.extract"])
def test_ctrl_c_during_imports_is_one_line(tmp_path, module):
    (tmp_path / "absl").mkdir()
    (tmp_path / "absl/__init__.py").write_text(SWALLOWING)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = children.run([sys.executable, "-m", module], limit=50, env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 130
    assert result.stderr == "interrupted; run the same command again to continue\n"
