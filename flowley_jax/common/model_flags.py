"""The flags that name the model to sample with."""

from typing import Literal

from absl import flags

from flowley_jax.errors import FlowleyError

# --help of a command shows the flags as its own.
flags.disclaim_key_flags()


class ModelFlags:
    """The flags `--workdir`, `--published` and `--dtype`, which the constructor defines."""

    def __init__(self):
        self._workdir = flags.DEFINE_string(
            "workdir",
            None,
            "Folder of a training run or of a shared model, or hf:ORG/NAME for one on the Hugging Face hub; "
            "by default the model that comes with the package.",
        )
        self._published = flags.DEFINE_string(
            "published", None, "Folder of bundles of published weights, instead of --workdir."
        )
        self._dtype = flags.DEFINE_enum(
            "dtype", "float32", ["float32", "bfloat16"], "Compute type of published weights."
        )

    @property
    def workdir(self) -> str | None:
        """Folder or hub name of a run or shared model; None for the included model."""
        return self._workdir.value or None

    @property
    def published(self) -> str | None:
        """Folder of bundles; None for a run."""
        return self._published.value or None

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Compute type of the bundles."""
        return "bfloat16" if self._dtype.value == "bfloat16" else "float32"

    def check(self) -> None:
        """Raise FlowleyError if the flags do not go together."""
        if self.workdir and self.published:
            raise FlowleyError("give --workdir or --published, not both")
        if self._dtype.present and not self.published:
            raise FlowleyError("--dtype applies only to --published; a run's configuration has model.dtype")
