"""Programs that use each other's results, as a shell starts them."""

import json
import signal
import subprocess

import children
import pytest
import shell

pytestmark = pytest.mark.scale


def test_a_signal_stops_with_exit_code_75_and_the_same_command_resumes(tmp_path):
    workdir = tmp_path / "run"
    flags = ("--config", shell.DEBUG, "--workdir", workdir, *shell.SMALL, "--config.train.steps=60")
    command = shell.command("flowley_jax.train", *flags)
    with children.started(command, stderr=subprocess.PIPE, text=True, cwd=shell.ROOT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGTERM)
                break
        _, rest = process.communicate()
    assert process.returncode == 75, rest
    stopped = int(rest.split("stopped at step ")[1].split()[0])
    assert 3 <= stopped < 60
    result = shell.run("flowley_jax.train", *flags[:-1], f"--config.train.steps={stopped + 2}")
    assert result.returncode == 0
    assert f"resuming at step {stopped} of {stopped + 2}" in result.stderr
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, stopped + 3))


def test_averages_are_fine_tuned_and_the_adapter_file_is_small(tmp_path):
    trained = shell.train(tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    out = tmp_path / "weights.safetensors"
    flags = ("--sigma-rel=0.1", "--novalidate")
    assert shell.run("flowley_jax.ema", "--workdir", tmp_path / "run", *flags, "--out", out).returncode == 0
    tuned = shell.train(tmp_path / "tuned", f"--config.start.weights={out}", "--config.lora.rank=2")
    assert tuned.returncode == 0, tuned.stderr
    assert f"starting from {out}" in tuned.stderr
    adapter = tmp_path / "adapter.safetensors"
    result = shell.run("flowley_jax.ema", "--workdir", tmp_path / "tuned", *flags, "--adapter", adapter)
    assert result.returncode == 0 and adapter.stat().st_size < out.stat().st_size / 5
