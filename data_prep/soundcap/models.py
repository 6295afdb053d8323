"""What writes captions: a model on this machine, or a server that has one."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from data_prep.rejection import Rejection
from data_prep.soundcap.look import Seen

# Reason of a clip that the model does not take.
REFUSED = "model"


class CaptionModel(Protocol):
    """Answers a prompt about clips.

    Attributes:
      identity: what tells it from any other, for the provenance of captions.
      at_once: clips that it is given at a time.
    """

    at_once: int

    @property
    def identity(self) -> Mapping[str, str]: ...

    def __call__(self, clips: Sequence[Seen], prompt: str) -> list[str | Rejection]:
        """One answer for each clip, in order, or why there is none.

        Raises:
          FlowleyError: it can answer nothing at all.
        """
        ...
