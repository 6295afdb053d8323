"""Run Beam pipelines on any engine.

Every pipeline is a linear chain of steps over ready-made groups, and its results are files, so it runs on
engines that support little more (docs/records.md).
"""

import contextlib
import io
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_prep.rejection import one_line
from flowley_jax.errors import FlowleyError

# While one thread waits for the encoders, the others read clips.
DEFAULT_OPTIONS = ("--direct_running_mode=multi_threading", "--direct_num_workers=3")
_DIRECT, _DASK = "DirectRunner", "DaskRunner"
# Beam's own DirectRunner would try to download another runner, and Beam does not know DaskRunner by its name.
_RUNNERS = {_DIRECT: "FnApiRunner", _DASK: "apache_beam.runners.dask.dask_runner.DaskRunner"}


def run_pipeline(
    elements: Sequence[Any],
    steps: Mapping[str, Any],
    options: PipelineOptions | None,
    *,
    close: Callable[[], None] | None = None,
) -> None:
    """Pass elements through named steps, and wait for the end.

    Args:
      elements: input of the first step.
      steps: Beam transforms by label, in order.
      options: Beam's options, which include the runner; by default threads of this process.
      close: called at the end, whether or not the pipeline succeeded.

    Raises:
      FlowleyError: a step raised one, or the engine cannot be reached.
    """
    if not elements:
        return
    options = options or PipelineOptions(list(DEFAULT_OPTIONS))
    name, pipeline = _create_pipeline(options)
    collection = pipeline | "elements" >> beam.Create(elements) | "spread" >> beam.Reshuffle()
    for label, step in steps.items():
        collection = collection | label >> step
    try:
        with _silence_beam(), contextlib.ExitStack() as at_end:
            at_end.callback(_remove_temporary_folder, pipeline)
            if close is not None:
                at_end.callback(close)
            if name == _DASK:
                at_end.callback(_close_dask_client)
            pipeline.run().wait_until_finish()
    except Exception as error:
        message = _step_error(error)
        if message:
            raise FlowleyError(message) from None
        if name in _RUNNERS:
            raise
        raise FlowleyError(f"--runner={name}: {one_line(error)}") from error


def check_options(options: PipelineOptions) -> None:
    """Check the options of a runner.

    Raises:
      FlowleyError: the runner does not exist, or a local engine would ignore a flag. Other engines pass
        unknown flags on, so theirs are not checked.
    """
    name, pipeline = _create_pipeline(options)
    _remove_temporary_folder(pipeline)
    known, given = (options.get_all_options(retain_unknown_options=retain) for retain in (False, True))
    if name in _RUNNERS and (unknown := sorted(given.keys() - known.keys())):
        raise FlowleyError(f"--runner={name} has no flag --{unknown[0]}")


def _create_pipeline(options: PipelineOptions) -> tuple[str, beam.Pipeline]:
    name = options.get_all_options()["runner"] or _DIRECT
    try:
        return name, beam.Pipeline(runner=_RUNNERS.get(name, name), options=options)
    except (ValueError, ImportError) as error:
        raise FlowleyError(f"--runner={name}: {one_line(error)}") from error


def _remove_temporary_folder(pipeline: beam.Pipeline) -> None:
    """Remove the folder that every pipeline makes; Beam does so only if the pipeline runs."""
    shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)


def _step_error(error: Exception) -> str:
    """Return the message of the FlowleyError that a step raised, or an empty string.

    Engines wrap what a step raises, often as the text of a traceback, and append the name of the step.
    """
    if isinstance(error, FlowleyError):
        return str(error).split(" [while running")[0]
    names = "|".join(kind.__name__ for kind in (FlowleyError, *FlowleyError.__subclasses__()))
    pattern = rf"\b(?:{names}): (.*?)(?: \[while running.*)?$"
    messages = re.findall(pattern, str(error), re.MULTILINE)
    return messages[-1] if messages else ""


def _close_dask_client() -> None:
    """Close the client that Beam's runner, and a cluster that it started here, would leave open."""
    import distributed

    with contextlib.suppress(ValueError):
        distributed.default_client().close()


@contextlib.contextmanager
def _silence_beam() -> Iterator[None]:
    """Keep Beam from printing tracebacks of errors that it also raises, and of Ctrl-C."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    with contextlib.redirect_stderr(io.StringIO()):
        yield
