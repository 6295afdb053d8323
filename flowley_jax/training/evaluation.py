"""Evaluation of a run as it trains: what the loop asks for, and what packages above this one provide."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowley_jax.config import ExperimentConfig
from flowley_jax.data.components import Components
from flowley_jax.errors import FlowleyError
from flowley_jax.training.metrics import Reports
from flowley_jax.training.sharding import Layout
from flowley_jax.training.state import StepConfig, TrainState, model_weights

log = logging.getLogger(__name__)


class EvaluationStopped(Exception):
    """A signal asked the run to stop before its evaluation was finished."""


class Evaluation(Protocol):
    """Scores of a network, as often as a run asks for them."""

    def __call__(self, variables: tuple[Any, Any], *, stop: Callable[[], bool]) -> Mapping[str, float]:
        """Sample sounds and return their scores by metric; none outside the first process. Collective.

        Args:
          variables: parameters and constants of the network as NumPy arrays, with LoRA merged.
          stop: asked before every batch whether to end; answers the same in all processes.

        Raises:
          EvaluationStopped: `stop` said so.
          FlowleyError: the sounds cannot be sampled or scored.
        """
        ...


class PrepareEvaluation(Protocol):
    """Function that prepares the evaluations of a run; `evaluation.during_training` has one."""

    def __call__(self, config: ExperimentConfig, workdir: Path, components: Components) -> Evaluation:
        """Prepare everything that the evaluations have in common. Collective.

        Args:
          config: configuration of the run.
          workdir: folder of the run, in which only the first process may write.
          components: codec and vocoder of the run.

        Raises:
          FlowleyError: the run cannot be evaluated as it is configured.
        """
        ...


def report_scores(
    evaluation: Evaluation,
    reports: Reports,
    step: int,
    state: TrainState,
    *,
    config: StepConfig,
    layout: Layout,
    stop: Callable[[], bool],
) -> None:
    """Score the first EMA track, and report the metrics. Collective: every process must call this.

    A signal or an error costs the evaluation only.
    """
    averaged = model_weights(state, config.lora, trained=state.averages[0])
    variables = layout.to_host((averaged, state.constants))
    try:
        scores = evaluation(variables, stop=stop)
    except EvaluationStopped:
        return
    except (FlowleyError, np.linalg.LinAlgError) as error:
        # Early weights can sample what is no sound, and the training is worth more.
        log.warning("step %d: no evaluation: %s", step, error)
        return
    reports.evaluation(step, scores)
