"""Post-hoc EMA against the published implementation and the integral that defines it."""

import weakref

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from flowley_jax.runs.ema import gamma_of, new_share, synthesis_weights, update_averages, weighted_sum
from flowley_jax.runs.snapshots import EmaSnapshots

DATA = golden_data.load("e_ema")
SETTINGS = golden_data.settings("e_ema")
TRACKS = tuple(SETTINGS["ema_sigma_rels"])
STEPS = SETTINGS["t_i"]


def test_gamma():
    np.testing.assert_allclose([gamma_of(s) for s in SETTINGS["sigma_rels"]], DATA["out/gamma"], rtol=1e-6)


@pytest.mark.parametrize("track", [0, 1])
def test_new_shares(track):
    gamma = gamma_of(TRACKS[track])
    steps = np.arange(1, 51)
    kept = DATA["out/beta_corrected"][track]
    np.testing.assert_allclose(new_share(steps, gamma), 1.0 - kept, rtol=2e-6)
    every = DATA["out/beta_corrected_every10"][track]
    np.testing.assert_allclose(new_share(1 + 10 * np.arange(len(every)), gamma, 10), 1.0 - every, rtol=2e-6)


def test_toy_run():
    parameters = DATA["in/toy_params"]
    averages = (jnp.asarray(parameters[0]),) * 2
    seen = {}
    for step, value in enumerate(parameters, start=1):
        averages = update_averages(averages, jnp.asarray(value), step, TRACKS)
        seen[step] = np.stack(averages)
    golden = DATA["out/toy_ema_at_1_2_10_100_200_300"]
    for step, expected in zip((1, 2, 10, 100, 200, 300), golden, strict=True):
        np.testing.assert_allclose(seen[step], expected, atol=2e-6)

    stored_sigmas = [TRACKS[0]] * 3 + [TRACKS[1]] * 3
    snapshots = [seen[step][index // 3] for index, step in enumerate(STEPS)]
    for sigma, step, upto, name in (
        (0.05, 300, 300, "0.05"),
        (0.08, 300, 300, "0.08"),
        (0.08, 200, 200, "0.08_step200_max200"),
    ):
        chosen = [i for i, stored in enumerate(STEPS) if stored <= upto]
        weights = synthesis_weights(
            [STEPS[i] for i in chosen], [stored_sigmas[i] for i in chosen], sigma_rel=sigma, step=step
        )
        result = weighted_sum([snapshots[i] for i in chosen], weights.tolist())
        np.testing.assert_allclose(result, DATA[f"out/toy_synth_sigma{name}"], atol=2e-5)


@pytest.mark.parametrize(
    ("sigma", "step", "name"), [(0.05, 300, "0.05"), (0.08, 300, "0.08"), (0.15, 200, "0.15_tr200")]
)
def test_synthesis_weights(sigma, step, name):
    stored_sigmas = [TRACKS[0]] * 3 + [TRACKS[1]] * 3
    weights = synthesis_weights(STEPS, stored_sigmas, sigma_rel=sigma, step=step)
    np.testing.assert_allclose(weights, DATA[f"out/weights_sigma{name}_gamma_f64"][:, 0], atol=1e-6)


def test_weights_solve_the_least_squares_problem():
    # Rebuilt from numerical integrals of the power functions themselves.
    steps, sigmas, target, end = [50, 100, 50, 100], [0.05, 0.05, 0.1, 0.1], 0.07, 100

    def profile(gamma, stop):
        return lambda t: (gamma + 1) * t**gamma / stop ** (gamma + 1) if t <= stop else 0.0

    stored = [profile(gamma_of(s), t) for s, t in zip(sigmas, steps, strict=True)]
    wanted = profile(gamma_of(target), end)
    gram = [
        [quad(lambda t, f=f, g=g: f(t) * g(t), 0, 100, points=[50], limit=200)[0] for g in stored]
        for f in stored
    ]
    overlap = [quad(lambda t, f=f: f(t) * wanted(t), 0, 100, points=[50], limit=200)[0] for f in stored]
    expected = np.linalg.solve(gram, overlap)
    np.testing.assert_allclose(
        synthesis_weights(steps, sigmas, sigma_rel=target, step=end), expected, rtol=1e-4
    )


def test_relative_width_is_the_one_asked_for():
    for sigma in (0.05, 0.1, 0.25):
        gamma, t = gamma_of(sigma), np.linspace(0, 1, 200_001)
        density = (gamma + 1) * t**gamma
        mean = np.trapezoid(density * t, t)
        assert np.sqrt(np.trapezoid(density * (t - mean) ** 2, t)) == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.03, 0.07, 0.2])
def test_an_average_of_constant_weights_is_these_weights_however_few_are_stored(tmp_path, sigma_rel, caplog):
    # LoRA's product would shrink twice, by the square of the sum of the weights.
    pair = {"a": jnp.full((4, 2), 0.5), "b": jnp.full((2, 3), -2.0)}
    with EmaSnapshots(tmp_path) as snapshots:
        snapshots.save(500, (pair, pair), {"mean": jnp.zeros(2)})
        found = snapshots.synthesise(pair, sigma_rels=(0.05, 0.1), sigma_rel=sigma_rel)
    for name, expected in pair.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    warned = "only approximate one of this length; exact ones: 0.05, 0.1" in caplog.text
    assert warned == (sigma_rel != 0.07)


@pytest.mark.parametrize("step", [1, 1000, 300_000, 10_000_000])
def test_an_update_is_exact_late_in_a_run(step):
    for sigma_rel in TRACKS:
        (average,) = update_averages([jnp.zeros(())], jnp.ones(()), jnp.asarray(step), [sigma_rel])
        base = (1 - 1 / (step + 1)) * (1 - 1 / (step + 2))
        # In float64; at 10⁷ steps, its own error is 10⁻⁹.
        expected = 1 - base ** ((1 + gamma_of(sigma_rel)) / 2)
        assert float(average) == pytest.approx(expected, rel=2e-6)


def test_a_sum_holds_one_tree_at_a_time():
    made = []

    def tree(value):
        assert not any(ref() is not None for ref in made), "an earlier tree is still held"
        leaf = np.full(3, value, np.float32)
        made.append(weakref.ref(leaf))
        return {"leaf": leaf, "scalar": np.float32(value)}

    total = weighted_sum((tree(value) for value in (1.0, 2.0, 3.0, 4.0)), [0.5, 0.25, 1.0, -1.0])
    assert len(made) == 4
    np.testing.assert_array_equal(total["leaf"], np.zeros(3))
    assert total["leaf"].dtype == total["scalar"].dtype == np.float32
