"""Sampling on several devices of one process, and with the XLA flags of users."""

import os
import sys
from pathlib import Path

import children
import numpy as np
import pytest

# Samples clips of many lengths; the number of devices is an argument.
PROGRAM = """
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
from flowley_jax.sampling import Clip, Sampler
sampler = Sampler.from_run(sys.argv[1])
size = sampler.components.video_encoder.frame_size
rng = np.random.default_rng(0)
clips = [
    Clip(id=str(length), frames=rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8))
    for length in (4, 10, 31, 90)
]
waves = {clip.id: wave for clip, wave in sampler.sounds(clips, num_samples=2)}
print("windows at once:", sampler.program(64).at_once, "devices:", len(jax.local_devices()))
np.savez(sys.argv[2], **waves)
"""


@pytest.mark.scale
def test_windows_are_divided_among_devices(tiny_run, tmp_path):
    sounds = {}
    for devices, at_once in ((1, 8), (3, 9), (4, 8)):
        out = tmp_path / f"{devices}.npz"
        words = [sys.executable, "-c", PROGRAM, str(tiny_run), str(out), str(devices)]
        result = children.run(words)
        assert result.returncode == 0, result.stderr
        assert f"windows at once: {at_once} devices: {devices}" in result.stdout
        sounds[devices] = dict(np.load(out))
    for name, expected in sounds[1].items():
        for devices in (3, 4):
            scale = np.abs(expected).max()
            # The iterations that find the phases amplify rounding.
            np.testing.assert_allclose(sounds[devices][name], expected, rtol=0, atol=1e-3 * scale)


EXACT = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
from test_sampler import SolverConfig, one_window_and_plain, small_model
for name in ("euler", "heun", "rk4", "dopri5"):
    solver = SolverConfig(name=name, steps=3, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(*one_window_and_plain(small_model(), solver), err_msg=name)
"""


@pytest.mark.scale
def test_clips_of_one_window_get_what_the_plain_flow_gives_bit_for_bit():
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    result = children.run([sys.executable, "-c", EXACT, tests, tests / "flow"], env=environment)
    assert result.returncode == 0, result.stderr
