"""The ODE solver: integrate the velocity from t = 0 to 1 with Diffrax."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowley_jax.common.ranges import Positive, Range
from flowley_jax.common.typed import check_values
from flowley_jax.errors import FlowleyError

SolverName = Literal["euler", "heun", "midpoint", "rk4", "tsit5", "dopri5"]
ADAPTIVE = ("tsit5", "dopri5")
MAX_ADAPTIVE_STEPS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """Settings of the ODE solver.

    With an adaptive solver the step size is common to the batch, so a sample depends on its batch.

    Attributes:
      name: solver; tsit5 and dopri5 adapt their steps to the tolerances, the others take `steps` equal steps.
      steps: number of intervals of the fixed grid.
      rtol: relative tolerance of the adaptive solvers.
      atol: absolute tolerance of the adaptive solvers.
    """

    name: SolverName = "euler"
    steps: Annotated[int, Range(least=1, most=1_000_000)] = 25
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


_SOLVERS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "rk4": _ThreeEighths,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
}
_EVALUATIONS_PER_STEP = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "tsit5": 6, "dopri5": 6}


@jax.named_scope("solver")
def solve_flow(
    velocity: Callable[[Float[Array, ""], Float[Array, "B Ta C"]], Float[Array, "B Ta C"]],
    noise: Float[Array, "B Ta C"],
    config: SolverConfig,
) -> Solution:
    """Integrate dx/dt = velocity(t, x) from the noise at t = 0 to t = 1, in float32.

    An adaptive solver that runs out of steps does not raise, because that would need a host callback: check
    `Solution.succeeded`.
    """
    adaptive = config.name in ADAPTIVE

    def evaluate(t: Any, x: Array, args: Any) -> Array:
        del args
        with jax.named_scope("evaluation"):
            return velocity(jnp.asarray(t), x)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(evaluate),
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
    # The adaptive solvers reuse the last stage of a step as the first of the next one, so only the very first
    # stage adds an evaluation.
    evaluations = solution.stats["num_steps"] * _EVALUATIONS_PER_STEP[config.name] + int(adaptive)
    succeeded = solution.result == diffrax.RESULTS.successful
    return Solution(solution.ys[-1], jnp.asarray(evaluations), jnp.asarray(succeeded))


def initial_noise(keys: jax.Array, shape: tuple[int, int]) -> Float[Array, "B Ta C"]:
    """Draw standard normal noise of shape (Ta, C) from each item's own key, independent of its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
