"""Divide the clips of a folder among the processes that sample to it."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowley_jax.sampling.plan import Job
from flowley_jax.sampling.sample_log import SampleLog
from flowley_jax.sampling.sampler import group_size
from flowley_jax.sampling.team import Team

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0


class Shares:
    """The jobs of one process, taken group by group while others take theirs.

    Args:
      jobs: all jobs of the folder that were not done when the process started.
      sample_log: the folder's log, in which processes see what the others have done.
      team: the processes.
      batch: number of clips that are sampled at once.

    Attributes:
      done: files of clips that other processes have sampled, by clip id.
      failed: one line for every clip that failed in another process.
    """

    def __init__(self, jobs: Sequence[Job], sample_log: SampleLog, team: Team, *, batch: int):
        self._left = {job.clip.id: job for job in jobs}
        self._log, self._team, self._batch = sample_log, team, batch
        self.done: dict[str, list[Path]] = {}
        self.failed: list[str] = []

    def groups(self) -> Iterator[list[Job]]:
        """Yield the jobs of this process until every clip is done, those of the others included."""
        announced = False
        while self._left:
            with self._team.turn():
                self._drop_finished()
                group = self._claimed()
            if group:
                try:
                    yield group
                finally:
                    for job in group:
                        self._team.release(job.clip.id)
            elif self._left:
                if not announced:
                    log.info("waiting for other processes to sample the last clips: %d", len(self._left))
                    announced = True
                time.sleep(_POLL_SECONDS)

    def _drop_finished(self) -> None:
        self._log.refresh()
        for clip_id, job in list(self._left.items()):
            if self._log.is_done(job.request, job.paths):
                self.done[clip_id] = job.paths
            elif clip_id in self._log.failures:
                self.failed.append(self._log.failures[clip_id])
            else:
                continue
            del self._left[clip_id]

    def _claimed(self) -> list[Job]:
        """Take jobs from those that are left and return them; none if other processes have them all."""
        size, group = group_size(len(self._left), self._batch), []
        for clip_id in list(self._left):
            if len(group) == size:
                break
            if self._team.claim(clip_id):
                group.append(self._left.pop(clip_id))
        return group
