"""The --config flag: where its file is found, how its values are set, and what --help lists."""

import re
from pathlib import Path

import pytest
from absl import flags

from data_prep.settings import RecordSettings
from flowley_jax.cli import parse_flags
from flowley_jax.config import ExperimentConfig
from flowley_jax.config_file import packaged_file
from flowley_jax.config_flag import ConfigFlag, experiment_flag
from flowley_jax.config_help import describe, sections, value_names
from flowley_jax.errors import FlowleyError

IMPACTS = packaged_file("impacts.py")


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
    Path("impacts.py").write_text(Path(IMPACTS).read_text().replace("steps=1800", "steps=7"))
    assert parse("--config=impacts.py").train.steps == 7
    assert parse("--config=configs/impacts.py").train.steps == 1800


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
        ("raise ValueError('too\\nlong')", "{file}, line 3: ValueError: too long"),
        ("raise FlowleyError('no option huge')", "no option huge"),
        ("return {}['x']", "{file}, line 3: KeyError: 'x'"),
        ("return 1 / 0", "{file}, line 3: ZeroDivisionError: division by zero"),
        ("import torchh", "{file}, line 3: ModuleNotFoundError: No module named 'torchh'"),
        ("open('/nowhere/x')", "{file}, line 3: FileNotFoundError: [Errno 2] No such file or directory"),
        ("return ModelConfig(widht=1)", "{file}, line 3: TypeError: "),
        ("return (", "{file}, line 3: SyntaxError: '(' was never closed"),
        ("return {}", "{file}: get_config must return a ConfigDict"),
        ("pass", "{file}: get_config must return a ConfigDict"),
        ("import sys; sys.exit(3)", "{file}, line 3: SystemExit: 3"),
        ("return TrainConfig(steps=0)", "{file}, line 3: train.steps=0 must be at least 1"),
    ]:
        file.write_text(
            "from flowley_jax import FlowleyError, ModelConfig; from flowley_jax.config import TrainConfig\n"
            f"def get_config():\n    {body}\n"
        )
        with pytest.raises(FlowleyError, match=f"^{re.escape(message.format(file=file))}") as caught:
            parse(f"--config={file}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a:b c/own.py", "ü.v1/-own", "own:debug.py", "=.py"])
def test_files_with_odd_names_are_found(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(Path(IMPACTS).read_text())
    assert parse(f"--config={name}") == parse(f"--config={IMPACTS}")
    assert parse("--config", f"{name}:debug").data.generate == 8


def test_a_file_may_leave_values_out(tmp_path):
    returned = "ConfigDict({'train': {'steps': 5}})"
    text = f"from ml_collections import ConfigDict\ndef get_config():\n    return {returned}"
    (tmp_path / "own.py").write_text(text)
    config = parse(f"--config={tmp_path}/own.py", "--config.train.log_every=3", "--config.model.balance=0.5")
    assert (config.train.steps, config.train.log_every, config.model.balance) == (5, 3, 0.5)
    assert config.optim == ExperimentConfig().optim


def test_a_file_that_defines_nothing_is_named(tmp_path):
    (tmp_path / "own.py").write_text("")
    with pytest.raises(FlowleyError, match=r"own\.py: must define get_config"):
        parse(f"--config={tmp_path}/own.py")


def test_the_configuration_of_another_command_is_named():
    with pytest.raises(
        FlowleyError, match=r"records.py: has audio_only, which is no value of this command's"
    ):
        parse("--config=records.py")


def test_a_configuration_is_given_once():
    with pytest.raises(FlowleyError, match=r"--config must be given once, found impacts.py and vggsound.py"):
        parse("--config=impacts.py", "--config", "vggsound.py")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--lr=1", "unknown flag --lr; did you mean --config.optim.learning_rate?"),
        ("--batch-size=1", "unknown flag --batch-size; did you mean --config.data.batch_size?"),
        ("--train.steps=1", "unknown flag --train.steps; did you mean --config.train.steps?"),
        ("--workdri=x", "unknown flag --workdri; did you mean --workdir?"),
        ("--qqqqqq", "unknown flag --qqqqqq (--help lists the options)"),
        ("--workdir=", "--workdir='' must not be empty"),
        (
            "--config.flow.time=3",
            "unknown configuration key flow.time; it is a section with flow.time.kind, flow.time.mean",
        ),
        ("--config.seed.x=3", "unknown configuration key seed.x; did you mean"),
        (
            "--config.ema.sigma_rels[0]=3",
            "unknown configuration key ema.sigma_rels[0]; did you mean ema.sigma",
        ),
        ("--config.=3", "unknown configuration key"),
    ],
)
def test_a_wrong_flag_is_answered_in_one_line(word, message):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder.", flag_values=values, required=True)
    config = experiment_flag("Configuration.", values=values)
    with pytest.raises(FlowleyError, match=re.escape(message)) as caught:
        parse_flags(["train", f"--config={IMPACTS}", "--workdir=x", word], values, config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


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
    assert "\n  optim.learning_rate: float above 0 = 0.00015\n" in text
    assert "\n  optim.schedule: steps|cosine = steps\n" in text
    assert "\n  model.balance: float, or none = none\n" in text
    assert "\n  ema.sigma_rels: tuple of float between 0 and 0.288 = (0.05, 0.1)\n" in text
    assert (
        "\nsample.solver: " in text
        and "\n  sample.solver.steps: int at least 1 and at most 1000000 = 25\n" in text
    )


def test_help_shows_the_defaults_of_the_file_that_is_given():
    config = experiment_flag("Configuration.", values=flags.FlagValues())
    assert "train.steps: int at least 1 = 300000" in config.values_text(["train"])
    given = config.values_text(["train", "--config=impacts.py:debug", "--config.seed=3"])
    assert "train.steps: int at least 1 = 4\n" in given and "the defaults of" in given
    records = ConfigFlag(RecordSettings, "Records.", default="records.py", values=flags.FlagValues())
    assert "  seconds: float at least 0.01 and at most 3600 = 4.0\n" in records.values_text(["extract"])
    assert "  seconds: float at least 0.01 and at most 3600 = 8.0\n" in records.values_text(
        ["extract", "--config", "records.py:published"]
    )
