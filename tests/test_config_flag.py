"""The --config flag: where its file is found, how its values are set, and what --help lists."""

import re
from pathlib import Path

import pytest
from absl import flags

from data_prep.settings import RecordSettings
from flowley_jax.cli import parse_flags
from flowley_jax.config import ExperimentConfig
from flowley_jax.config_flag import ConfigFlag, default_config, experiment_flag
from flowley_jax.config_help import describe, sections, value_names
from flowley_jax.errors import FlowleyError

IMPACTS = default_config("impacts.py")


def parse(*words: str, default: str | None = None) -> ExperimentConfig:
    values = flags.FlagValues()
    config = experiment_flag("Configuration.", default=default, values=values)
    parse_flags(["train", *words], values, config)
    return config.value


@pytest.mark.parametrize("name", ["impacts.py", "configs/impacts.py", IMPACTS])
def test_packaged_files_are_found_outside_a_clone(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert parse("--config", name) == parse(f"--config={IMPACTS}")
    assert parse(f"--config={name}:debug").data.generate == 8


def test_a_file_of_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("impacts.py").write_text(Path(IMPACTS).read_text().replace("steps=900", "steps=7"))
    assert parse("--config=impacts.py").train.steps == 7
    assert parse("--config=configs/impacts.py").train.steps == 900


@pytest.mark.parametrize("name", ["none.py", "elsewhere/impacts.py"])
def test_a_missing_file_is_reported_with_the_packaged_ones(name):
    message = f"{name}: no such file; the package comes with impacts.py, records.py, vggsound.py"
    with pytest.raises(FlowleyError, match=re.escape(message)):
        parse(f"--config={name}")


def test_values_are_set_in_any_order_and_with_hyphens():
    words = ("--config.data.batch-size", "8", f"--config={IMPACTS}", "--noconfig.flow.immiscible")
    config = parse(*words, "--config.ema.sigma_rels=(0.1,)", "--config.model.balance=0.5")
    assert config.data.batch_size == 8 and not config.flow.immiscible
    assert config.ema.sigma_rels == (0.1,) and config.model.balance == 0.5


def test_a_default_file_takes_values_too():
    assert parse("--config.seed=5", default="impacts.py").seed == 5
    with pytest.raises(FlowleyError, match="--config must name a configuration file"):
        parse("--config.seed=5")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        (
            "--config.train.batch_size=8",
            "unknown configuration key train.batch_size; did you mean data.batch_size?",
        ),
        ("--config.train.lr=1", "unknown configuration key train.lr; did you mean optim.learning_rate?"),
        ("--config.bs=8", "unknown configuration key bs; did you mean data.batch_size?"),
        ("--config.optim.learning_rte=1", "did you mean optim.learning_rate?"),
        ("--config.sample.steps=9", "did you mean sample.solver.steps?"),
        ("--config.steps=9", "did you mean train.steps?"),
        ("--config.model.heads=9", "did you mean model.num_heads?"),
        ("--noconfig.immiscible", "did you mean flow.immiscible?"),
        ("--config.colour=1", "unknown configuration key colour (--help"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(word, meant):
    with pytest.raises(FlowleyError, match=re.escape(meant)):
        parse(f"--config={IMPACTS}", word)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.train.steps=abc", "train.steps='abc' must be an int"),
        ("--config.train.steps=1.5", "train.steps='1.5' must be an int"),
        ("--config.optim.learning_rate=fast", "optim.learning_rate='fast' must be a number"),
        ("--config.flow.immiscible=maybe", "flow.immiscible='maybe' must be true or false"),
        ("--config.ema.sigma_rels=long", "ema.sigma_rels='long' must be a number"),
        ("--config.model.fade=square", "model.fade='square' must be one of cosine"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(word, message):
    with pytest.raises(FlowleyError, match=re.escape(message)):
        parse(f"--config={IMPACTS}", word)


def test_errors_within_a_configuration_file_are_one_line(tmp_path):
    file = tmp_path / "own.py"
    for body, message in [
        ("raise ValueError('too\\nlong')", "long"),
        ("return {}['x']", "the configuration failed with KeyError: 'x'"),
        ("return {}", "get_config must return a ConfigDict"),
        ("return ExperimentConfig(seed=1, train=TrainConfig(steps=0))", "train.steps=0 must be at least 1"),
    ]:
        file.write_text(
            f"from flowley_jax.config import ExperimentConfig, TrainConfig\ndef get_config():\n    {body}\n"
        )
        with pytest.raises(FlowleyError, match=re.escape(message)) as caught:
            parse(f"--config={file}")
        assert "\n" not in str(caught.value) and "flowley_jax.errors" not in str(caught.value)


@pytest.mark.parametrize("kind", [ExperimentConfig, RecordSettings])
def test_every_value_has_an_explanation(kind):
    for section in sections(kind):
        assert section.summary, section.path
        for value in section.values:
            assert value.explanation, f"{value.path} has no entry under Attributes by itself"
            assert not value.explanation.startswith(("of ", "that ")), value.path


def test_help_lists_every_value_with_type_and_default():
    text = describe(ExperimentConfig, ExperimentConfig())
    for name in value_names(ExperimentConfig):
        assert re.search(rf"^  {re.escape(name)}: .+ = .+\n      \S", text, re.MULTILINE), name
    assert "\n  optim.learning_rate: float = 0.00015\n" in text
    assert "\n  optim.schedule: steps|cosine = steps\n" in text
    assert "\n  model.balance: float or none = none\n" in text
    assert "\n  ema.sigma_rels: tuple of float = (0.05, 0.1)\n" in text
    assert "\nsample.solver: " in text and "\n  sample.solver.steps: int = 25\n" in text


def test_help_shows_the_defaults_of_the_file_that_is_given():
    config = experiment_flag("Configuration.", values=flags.FlagValues())
    assert "train.steps: int = 300000" in config.values_text(["train"])
    given = config.values_text(["train", "--config=impacts.py:debug", "--config.seed=3"])
    assert "train.steps: int = 4\n" in given and "the defaults of" in given
    records = ConfigFlag(RecordSettings, "Records.", default="records.py", values=flags.FlagValues())
    assert "  seconds: float = 4.0\n" in records.values_text(["extract"])
    assert "  seconds: float = 8.0\n" in records.values_text(["extract", "--config", "records.py:published"])
