"""Base of the components whose network is a bundle of published weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import jax
from flax import nnx

from flowley_jax.common.component import ProgramMemory, settings_from_json, settings_to_json
from flowley_jax.common.typed import check_values
from flowley_jax.interop.bundles import Bundle

Dtype = Literal["float32", "bfloat16"]


class PretrainedComponent:
    """Component that runs a published network; see `common.component.Component`.

    A subclass is a frozen dataclass with the fields `bundle` and `dtype`.

    Attributes:
      format: format of the bundle, a key of `interop.registry.FORMATS`.
      bundle: weights of the network, which are read on first use.
      dtype: compute type.
    """

    name: ClassVar[str]
    version: ClassVar[int | None] = None
    format: ClassVar[str]
    runs_on_host: ClassVar[bool] = False

    bundle: Bundle
    dtype: Dtype

    def __post_init__(self):
        self.bundle.check_format(self.format)
        check_values(self, self.name)

    @property
    def location(self) -> str:
        return str(self.bundle.locate())

    @property
    def weights_sha256(self) -> str | None:
        return self.bundle.sha256

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the stored form; the weights stay where the bundle is."""
        del folder
        return settings_to_json(self) | {"bundle": self.bundle.to_json()}

    @classmethod
    def from_json(cls, stored: Any, folder: Path, *, where: str, mel: Any = None) -> Self:
        """Return the component that `to_json` stored; the weights are not read."""
        del folder, mel
        settings = settings_from_json(cls, stored, where)
        return cls(**settings | {"bundle": Bundle.from_json(settings["bundle"])})

    def program_memory(self, function: Callable[..., Any], *inputs: jax.ShapeDtypeStruct) -> ProgramMemory:
        """Compile `function(network, *inputs)` and return the memory that it needs.

        Args:
          function: function of the network and of arrays.
          inputs: shapes of the arrays.
        """
        graphdef, state = nnx.split(self.bundle.abstract(dtype=self.dtype))
        program = jax.jit(lambda state, *arrays: function(nnx.merge(graphdef, state), *arrays))
        analysis: Any = program.lower(state, *inputs).compile().memory_analysis()
        weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        return ProgramMemory(weights=weights, temporaries=analysis.temp_size_in_bytes)
