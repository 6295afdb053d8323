"""The flow's ODE from t = 0 to 1, solved by Diffrax."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowley_jax.errors import FlowleyError

SolverName = Literal["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5"]
ADAPTIVE = ("tsit5", "dopri5")
MAX_ADAPTIVE_STEPS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How the ODE is solved.

    Attributes:
      name: euler, heun, midpoint and rk4 (3/8 rule) take `steps` equal steps; tsit5 and dopri5 choose
        their steps to the tolerances. The adaptive step size is common to the batch, so an item's
        sample then depends on its batch mates.
      steps: number of intervals of the fixed grid.
      rtol, atol: tolerances of the adaptive solvers.
    """

    name: SolverName = "euler"
    steps: int = 25
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self):
        if self.name not in get_args(SolverName):
            raise FlowleyError(f"solver {self.name!r} must be one of {', '.join(get_args(SolverName))}")
        if self.steps < 1:
            raise FlowleyError(f"steps={self.steps} must be at least 1")
        if self.rtol <= 0.0 or self.atol <= 0.0:
            raise FlowleyError(f"rtol={self.rtol} and atol={self.atol} must be positive")

    @property
    def evaluations(self) -> int:
        """Of the velocity in one solution. Raises FlowleyError for adaptive solvers, which decide it."""
        if self.name in ADAPTIVE:
            raise FlowleyError(f"solver {self.name} chooses its steps: their number is not known before")
        return self.steps * _EVALUATIONS_PER_STEP[self.name]


class Solution(NamedTuple):
    """A solved flow.

    Attributes:
      latent: state at t = 1.
      evaluations: how often the velocity was evaluated.
      succeeded: false when an adaptive solver ran out of steps; `latent` is then worthless.
    """

    latent: Float[Array, "B Ta C"]
    evaluations: Int[Array, ""]
    succeeded: Array


class _ThreeEighths(diffrax.AbstractERK):
    """Kutta's 3/8 rule, fourth order: the rule that torchdiffeq calls "rk4"."""

    tableau = diffrax.ButcherTableau(
        c=np.array([1 / 3, 2 / 3, 1.0]),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.zeros(4),
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        del terms
        return 4


_SOLVERS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "rk4": _ThreeEighths,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
}
_EVALUATIONS_PER_STEP = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "tsit5": 6, "dopri5": 6}


def solve_flow(
    velocity: Callable[[Float[Array, ""], Float[Array, "B Ta C"]], Float[Array, "B Ta C"]],
    noise: Float[Array, "B Ta C"],
    config: SolverConfig,
) -> Solution:
    """Integrates dx/dt = velocity(t, x) from the noise at t = 0 to t = 1, in float32.

    Adaptive solvers do not raise when they run out of steps, which would need a host callback: check
    `Solution.succeeded`.
    """
    adaptive = config.name in ADAPTIVE
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, args: velocity(jnp.asarray(t), x)),
        _SOLVERS[config.name](),
        t0=0.0,
        t1=1.0,
        dt0=1.0 / config.steps if adaptive else None,
        y0=noise.astype(jnp.float32),
        stepsize_controller=(
            diffrax.PIDController(rtol=config.rtol, atol=config.atol)
            if adaptive
            else diffrax.StepTo(ts=jnp.linspace(0.0, 1.0, config.steps + 1))
        ),
        max_steps=MAX_ADAPTIVE_STEPS if adaptive else config.steps,
        throw=False,
    )
    assert solution.ys is not None
    # A first-same-as-last method evaluates once more at the start than its stages per step.
    evaluations = solution.stats["num_steps"] * _EVALUATIONS_PER_STEP[config.name] + int(adaptive)
    succeeded = solution.result == diffrax.RESULTS.successful
    return Solution(solution.ys[-1], jnp.asarray(evaluations), jnp.asarray(succeeded))


def initial_noise(keys: jax.Array, shape: tuple[int, int]) -> Float[Array, "B Ta C"]:
    """Standard normal noise, (Ta, C) for each item's own key, whatever batch it is in."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
