"""The ODE solver: integrate the velocity from t = 0 to 1 with Diffrax."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.common.ranges import SHIFTS, Positive, Range
from flowley_jax.common.typed import check_values
from flowley_jax.errors import FlowleyError

SolverName = Literal["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5", "flow_map"]
# The velocity at t and x; with a third argument r, its mean from t to r, as a flow map gives it.
Velocity = Callable[
    [Float[Array, ""], Float[Array, "B Ta C"], Float[Array, ""] | None], Float[Array, "B Ta C"]
]
ADAPTIVE = ("tsit5", "dopri5")
MAX_ADAPTIVE_STEPS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Settings of the ODE solver.

    Attributes:
      name: solver; tsit5 and dopri5 adapt their steps to the tolerances, the others take `steps` steps;
        flow_map is for networks trained as flow maps, and takes steps of any length.
      steps: number of intervals of the fixed grid.
      shift: s of the fixed grid t = u / (s − (s − 1)·u) of equally spaced u; above 1, steps are short near
        the noise, below 1 near the sound (Esser et al. 2024, arXiv 2403.03206).
      rtol: relative tolerance of the adaptive solvers.
      atol: absolute tolerance of the adaptive solvers.
    """

    name: SolverName = "euler"
    steps: Annotated[int, Range(least=1, most=1_000_000)] = 25
    shift: Annotated[float, SHIFTS] = 1.0
    rtol: Positive = 1e-5
    atol: Positive = 1e-5

    def __post_init__(self):
        check_values(self, "sample.solver")

    @property
    def evaluations(self) -> int:
        """Number of velocity evaluations per solve.

        Raises:
          FlowleyError: the solver is adaptive, and the number depends on the velocity.
        """
        if self.name in ADAPTIVE:
            raise FlowleyError(
                f"sample.solver.name={self.name!r} must be a fixed-step solver: an adaptive one has no "
                "number of steps known in advance"
            )
        return self.steps * _EVALUATIONS_PER_STEP[self.name]

    @property
    def least_evaluations(self) -> int:
        """Number of velocity evaluations per solve, or for an adaptive solver, that of its first step."""
        return 1 + _EVALUATIONS_PER_STEP[self.name] if self.name in ADAPTIVE else self.evaluations


class Solution(NamedTuple):
    """A solved flow.

    Attributes:
      latent: state at t = 1.
      evaluations: number of velocity evaluations.
      succeeded: false when an adaptive solver ran out of steps; `latent` is then meaningless.
    """

    latent: Float[Array, "B Ta C"]
    evaluations: Int[Array, ""]
    succeeded: Bool[Array, ""]


class _ThreeEighths(diffrax.AbstractERK):
    """Kutta's 3/8 rule, fourth order: the rule that torchdiffeq calls "rk4"."""

    tableau = diffrax.ButcherTableau(
        c=np.array([1 / 3, 2 / 3, 1.0]),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.zeros(4),
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        del terms
        return 4


class _FlowMap(diffrax.Euler):
    """Steps by the mean velocity over the whole step."""

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, ...]:
        del args
        return super().step(terms, t0, t1, y0, t1, solver_state, made_jump)


_SOLVERS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "rk4": _ThreeEighths,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "flow_map": _FlowMap,
}
_EVALUATIONS_PER_STEP = {
    "euler": 1,
    "heun": 2,
    "midpoint": 2,
    "rk4": 4,
    "tsit5": 6,
    "dopri5": 6,
    "flow_map": 1,
}


def time_grid(config: SolverConfig) -> np.ndarray:
    """Return the times (steps + 1,) between which a fixed-step solver makes its steps, from 0 to 1."""
    uniform = np.linspace(0.0, 1.0, config.steps + 1)
    return uniform / (config.shift - (config.shift - 1.0) * uniform)


@jax.named_scope("solver")
def solve_flow(
    velocity: Velocity,
    x: Float[Array, "B Ta C"],
    config: SolverConfig,
    *,
    times: Sequence[float] | None = None,
    share_in_use: Float[Array, ""] | float = 1.0,
) -> Solution:
    """Integrate dx/dt = velocity(t, x) in float32.

    An adaptive solver that runs out of steps does not raise, because that would need a host callback: check
    `Solution.succeeded`.

    Args:
      velocity: the velocity.
      x: state at the first time; the noise at t = 0.
      config: settings.
      times: times between which a fixed-step solver makes its steps; start and end for an adaptive one. By
        default the whole flow.
      share_in_use: share of x whose velocity is not zero. The error of an adaptive solver is the mean over
        this share.
    """
    x = x.astype(jnp.float32)
    if config.name in ADAPTIVE:
        start, end = times or (0.0, 1.0)
        return _solve_adaptively(velocity, x, config, start, end, share_in_use)
    grid = jnp.asarray(times or time_grid(config), jnp.float32)

    # diffeqsolve would trace the velocity three times, which delays the first sound by a second.
    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        return solver_step(velocity, x, *ends, config), None

    latent, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:]))
    evaluations = (len(grid) - 1) * _EVALUATIONS_PER_STEP[config.name]
    return Solution(latent, jnp.asarray(evaluations), jnp.asarray(True))


def _solve_adaptively(
    velocity: Velocity,
    x: Float[Array, "B Ta C"],
    config: SolverConfig,
    start: float,
    end: float,
    share_in_use: Float[Array, ""] | float,
) -> Solution:
    def norm(error: Array) -> Array:
        return optimistix.rms_norm(error) / jnp.sqrt(share_in_use)

    solution = diffrax.diffeqsolve(
        _term(velocity),
        _SOLVERS[config.name](),
        t0=start,
        t1=end,
        dt0=(end - start) / config.steps,
        y0=x,
        stepsize_controller=diffrax.PIDController(rtol=config.rtol, atol=config.atol, norm=norm),
        max_steps=MAX_ADAPTIVE_STEPS,
        throw=False,
    )
    assert solution.ys is not None
    # These solvers reuse the last stage of a step as the first of the next one, so only the very first stage
    # adds an evaluation.
    evaluations = solution.stats["num_steps"] * _EVALUATIONS_PER_STEP[config.name] + 1
    succeeded = solution.result == diffrax.RESULTS.successful
    return Solution(solution.ys[-1], jnp.asarray(evaluations), jnp.asarray(succeeded))


@jax.named_scope("solver")
def solver_step(
    velocity: Velocity,
    x: Float[Array, "B Ta C"],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
    config: SolverConfig,
) -> Float[Array, "B Ta C"]:
    """Return x at t1, given x at t0, by one step of a fixed-step solver; see `solve_flow`."""
    term, solver = _term(velocity), _SOLVERS[config.name]()
    state = solver.init(term, t0, t1, x, None)
    stepped, *_ = solver.step(term, t0, t1, x, None, state, made_jump=False)
    return stepped


def _term(velocity: Velocity) -> diffrax.ODETerm:
    def evaluate(t: Any, x: Array, args: Any) -> Array:
        with jax.named_scope("evaluation"):
            return velocity(jnp.asarray(t), x, args)

    return diffrax.ODETerm(evaluate)


def initial_noise(keys: jax.Array, shape: tuple[int, int]) -> Float[Array, "B Ta C"]:
    """Draw standard normal noise of shape (Ta, C) from each item's own key, independent of its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
