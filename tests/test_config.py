"""Configurations: the published values, options that combine, and errors that name the value."""

import dataclasses
import json

import jax
import pytest

from configs import impacts, vggsound
from flowley_jax.config import ExperimentConfig, binding_values, experiment_from
from flowley_jax.config_flag import config_dict_of
from flowley_jax.errors import FlowleyError
from flowley_jax.model import ModelConfig
from flowley_jax.model.flowley import abstract_model
from flowley_jax.training.flops import configured_lengths


def test_vggsound_has_the_values_of_the_published_run():
    config = experiment_from(vggsound.get_config().to_dict())
    assert (config.model.width, config.model.multi_depth, config.model.single_depth) == (512, 5, 10)
    assert (config.model.window, config.model.fade_range, config.model.fade) == (0, 4, "cosine")
    assert (config.optim.learning_rate, config.optim.weight_decay, config.data.batch_size) == (
        1.5e-4,
        1e-6,
        512,
    )
    assert (config.sample.guidance, config.sample.solver.name, config.sample.solver.steps) == (
        7.5,
        "euler",
        25,
    )
    assert config.flow.immiscible and config.flow.time.kind == "cosmap" and config.flow.loss.kind == "mse"


def test_vggsound_draws_captions_from_two_sources():
    data = experiment_from(vggsound.get_config("soundcap,44k").to_dict()).data
    assert (data.captions, data.caption_weights) == (("table", "soundcap"), (0.5, 0.5))
    with pytest.raises(FlowleyError, match="needs as many weights"):
        dataclasses.replace(data, captions=("table",))


def test_vggsound_debug_is_small_unless_a_size_or_slice_is_named():
    full, debug, small, on_slice = (
        experiment_from(vggsound.get_config(options).to_dict())
        for options in ("", "base,debug", "debug", "v6e-16,debug")
    )
    assert debug.model == full.model and debug.data.generate > 0 and debug.train.keep_checkpoints == 1
    assert small.model == vggsound.SIZES["small"] and small.data == debug.data
    assert dataclasses.replace(on_slice.model, dtype="float32") == full.model


@pytest.mark.parametrize(
    ("tree", "steps", "learning_rate", "guidance"),
    [
        (impacts.get_config("few_steps"), 300, 1e-3, 2.0),
        (vggsound.get_config("few_steps,44k"), 20_000, 1e-4, 7.5),
    ],
    ids=["impacts", "vggsound"],
)
def test_few_steps_trains_a_flow_map_of_the_weights_that_a_flag_names(tree, steps, learning_rate, guidance):
    with pytest.raises(FlowleyError, match=r"flow\.map\.enabled=True needs start\.weights"):
        experiment_from(tree.to_dict())
    tree.start.weights = "runs/trained"
    config = experiment_from(tree.to_dict())
    assert config.flow.map.enabled and config.flow.map.guidance == guidance
    assert (config.train.steps, config.optim.learning_rate) == (steps, learning_rate)
    sample = config.sample
    assert (sample.solver.name, sample.solver.steps, sample.guidance) == ("flow_map", 4, 1.0)


def test_other_options_train_no_flow_map():
    for tree in (impacts.get_config(), impacts.get_config("debug"), vggsound.get_config("debug")):
        assert not experiment_from(tree.to_dict()).flow.map.enabled
    tree = vggsound.get_config("few_steps,debug")
    tree.start.weights = "runs/trained"
    config = experiment_from(tree.to_dict())
    assert config.flow.map.enabled and config.train.steps == 2 and config.data.generate


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(FlowleyError, match=r"no option 'huge'; it has debug, few_steps"):
        impacts.get_config("huge")
    with pytest.raises(FlowleyError, match=r"no option 'huge'; it has small, base, large, xl, 16k, 44k, v5e"):
        vggsound.get_config("44k,huge")
    with pytest.raises(FlowleyError, match="no settings for xl on v5e-16"):
        vggsound.get_config("xl,v5e-16")


@pytest.mark.parametrize(("size", "billions"), [("base", 0.171), ("large", 0.642), ("xl", 1.775)])
def test_sizes_have_their_number_of_parameters(size, billions):
    config = experiment_from(vggsound.get_config(size).to_dict())
    _, parameters, _ = abstract_model(config.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert count / 1e9 == pytest.approx(billions, rel=2e-3)


def test_options_combine_in_any_order():
    config = experiment_from(vggsound.get_config("v6e-16,44k,large").to_dict())
    assert (config.model.audio_dim, config.model.width, config.model.dtype) == (40, 1024, "bfloat16")
    assert configured_lengths(config) == (345, 64, 77)
    assert config.mesh.fsdp == 16 and config.data.records == "data/vggsound/records_44k"
    for place, sizes in vggsound.SLICES.items():
        for options in sizes:
            experiment_from(vggsound.get_config(f"{options},{place}").to_dict())


def test_a_configuration_survives_json():
    config = experiment_from(impacts.get_config().to_dict())
    assert experiment_from(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_values_that_are_none_can_be_set():
    tree = config_dict_of(ExperimentConfig())
    assert experiment_from(tree.to_dict()) == ExperimentConfig()
    tree.model.balance = 0.25
    assert experiment_from(tree.to_dict()).model.balance == 0.25
    with pytest.raises(TypeError):
        tree.model.balance = "half"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"optim": {"learning_rte": 1.0}},
            r"unknown key optim\.learning_rte; optim has beta1",
        ),
        ({"colour": 1}, r"unknown key colour; the configuration has data"),
        ({"model": {"width": 30, "num_heads": 4}}, r"model\.width=30 must be a multiple of 2·num_heads=8"),
        ({"model": {"fade": "square"}}, r"model\.fade='square' must be one of cosine"),
        ({"model": {"dropout": 1.0}}, r"model\.dropout=1\.0 must be at least 0 and below 1"),
        ({"model": {"mask_floor": -1.0}}, r"model\.mask_floor=-1\.0"),
        ({"optim": {"schedule": "saw"}}, r"optim\.schedule='saw'"),
        (
            {"data": {"generate_sample_rate": 12345}},
            "data.generate_sample_rate=12345 must be one of 16000, 44",
        ),
        ({"sample": {"guidance": -1.0}}, r"sample\.guidance=-1\.0 must be at least 0 and at most 100"),
        ({"optim": {"learning_rate": 0.0}}, r"optim\.learning_rate=0\.0 must be above 0"),
        ({"flow": {"time": {"kind": "late"}}}, r"flow\.time\.kind='late'"),
        ({"flow": {"loss": {"kind": "l3"}}}, r"flow\.loss\.kind='l3'"),
        ({"flow": {"condition_dropout": 2.0}}, r"flow\.condition_dropout=2\.0"),
        ({"flow": {"map": {"alpha_last": 0.0}}}, r"flow\.map\.alpha_last=0\.0 must be above 0 and at most 1"),
        (
            {"flow": {"map": {"alpha_first": 1.5}}},
            r"flow\.map\.alpha_first=1\.5 must be above 0 and at most 1",
        ),
        (
            {"flow": {"map": {"alpha_first": 0.1, "alpha_last": 0.2}}},
            r"flow\.map\.alpha_last=0\.2 must be at most flow\.map\.alpha_first=0\.1",
        ),
        (
            {"flow": {"map": {"guidance_from": 0.7, "guidance_to": 0.2}}},
            r"flow\.map\.guidance_from=0\.7 must be at most flow\.map\.guidance_to=0\.2",
        ),
        ({"flow": {"map": {"velocity_share": -0.1}}}, r"flow\.map\.velocity_share=-0\.1 must be at least 0"),
        (
            {"flow": {"map": {"enabled": True}, "loss": {"kind": "pseudo_huber"}}},
            r"flow\.loss\.kind=pseudo_huber must be mse for a flow map",
        ),
        ({"sample": {"solver": {"name": "rk5"}}}, r"sample\.solver\.name='rk5' must be one of euler"),
        ({"optim": {"clip_norm": -1.0}}, r"optim\.clip_norm=-1\.0 must be above 0"),
        ({"ema": {"sigma_rels": []}}, r"ema\.sigma_rels=\(\) must name at least one track"),
        ({"ema": {"sigma_rels": [0.05, 0.3]}}, r"ema\.sigma_rels=0\.3 must be between 0 and 0\.288"),
        ({"ema": {"snapshot_every": 0}}, r"ema\.snapshot_every=0 must be at least 1"),
        ({"sample": {"sigma_rel": 0.0}}, r"sample\.sigma_rel=0\.0 must be between"),
        ({"sample": {"guidance": float("nan")}}, r"sample\.guidance=nan must be a finite number"),
        ({"train": {"log_every": 0}}, r"train\.log_every=0 must be at least 1"),
    ],
)
def test_invalid_values_are_named(tree, message):
    with pytest.raises(FlowleyError, match=message):
        experiment_from(tree)


def test_values_that_may_change_on_resume_are_not_binding():
    binding = binding_values(ExperimentConfig())
    assert list(binding) == sorted(binding)
    assert not [name for name in binding if name.startswith(("mesh.", "train.", "sample."))]
    data = {"batch_size", "captions", "caption_weights"}
    assert {name for name in binding if name.startswith("data.")} == {f"data.{name}" for name in data}
    fields = {f"model.{field.name}" for field in dataclasses.fields(ModelConfig)}
    free = {"psca_implementation", "attention_implementation", "layers", "remat"}
    assert fields - binding.keys() == {f"model.{name}" for name in free}
    for name in ("seed", "flow.time.kind", "optim.learning_rate", "ema.sigma_rels", "start.weights"):
        assert name in binding
