"""Common interface of encoders, codecs and vocoders: stored form, where they run, and memory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from flowley_jax.errors import FlowleyError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramMemory:
    """Bytes that a component's program needs on each device; 0 for a component that runs on the host."""

    weights: int = 0
    temporaries: int = 0


class Component(Protocol):
    """An encoder, codec or vocoder: a frozen dataclass whose fields are its settings.

    Attributes:
      name: name in `components.json` and on the command line.
      version: version of the features that it makes; None if its weights or its file identify them.
      runs_on_host: whether it computes in NumPy, so that processes without JAX can run it.
      location: description of where its weights are.
      weights_sha256: SHA-256 of its weights; None if it has no file of weights.
    """

    name: ClassVar[str]
    version: ClassVar[int | None]
    runs_on_host: ClassVar[bool]

    @property
    def location(self) -> str: ...

    @property
    def weights_sha256(self) -> str | None: ...

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Compile its largest program and return the memory that it needs.

        Args:
          clips: clips that are processed together.
          length: time steps of each input: frames, tokens, latents or mel frames.
        """
        ...

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return its stored form, and write the files that belong to it into `folder`."""
        ...

    @classmethod
    def from_json(cls, stored: Any, folder: Path, *, where: str, mel: Any = None) -> Self:
        """Return the component that `to_json` stored.

        Args:
          stored: the result of `to_json`.
          folder: folder of its files.
          where: key of `stored`, for messages.
          mel: mel front end of the codec, for a component that takes it.

        Raises:
          FlowleyError: a key is missing or unknown, a file is damaged, or the version differs.
        """
        ...


class HostComponent:
    """Base of a component without published weights, which runs on the host; see `Component`."""

    name: ClassVar[str]
    version: ClassVar[int | None] = None
    runs_on_host: ClassVar[bool] = True

    @property
    def location(self) -> str:
        return "embedded in the program, on the host"

    @property
    def weights_sha256(self) -> str | None:
        return None

    def memory(self, *, clips: int, length: int) -> ProgramMemory:
        """Return no device memory, since no device program runs."""
        del clips, length
        return ProgramMemory()

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Return the stored form; see `Component`."""
        del folder
        return settings_to_json(self)

    @classmethod
    def from_json(cls, stored: Any, folder: Path, *, where: str, mel: Any = None) -> Self:
        """Return the component that `to_json` stored; see `Component`."""
        del folder
        settings = settings_from_json(cls, stored, where)
        if "mel" in _fields(cls):
            settings["mel"] = mel
        return cls(**settings)


def settings_to_json(component: Any) -> dict[str, Any]:
    """Return the version (if there is one), name and fields of a component."""
    version = {} if component.version is None else {"version": component.version}
    fields = {name: getattr(component, name) for name in _stored_fields(type(component))}
    return {**version, "name": component.name, **fields}


def settings_from_json(component_type: Any, stored: Any, where: str) -> dict[str, Any]:
    """Return the fields that `settings_to_json` stored, by name.

    Raises:
      FlowleyError: a key is missing or unknown, or the version differs from this program's.
    """
    fields, version = _stored_fields(component_type), component_type.version
    check_keys(stored, {"name", *fields, *(() if version is None else ("version",))}, where)
    if version is not None and stored["version"] != version:
        raise FlowleyError(
            f"{where} {stored['name']!r} has version {stored['version']}, this program has {version}; "
            "run data_prep.extract again"
        )
    return {name: stored[name] for name in fields}


def check_keys(stored: Any, expected: set[str], where: str) -> None:
    """Raise a FlowleyError unless `stored` is a mapping with exactly the expected keys."""
    if not isinstance(stored, Mapping):
        raise FlowleyError(f"{where} must be a JSON object, found {type(stored).__name__}")
    missing, unknown = sorted(expected - set(stored)), sorted(set(stored) - expected)
    if missing or unknown:
        raise FlowleyError(f"{where}: missing keys {missing}, unknown keys {unknown}")


def _fields(component_type: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(component_type)]


def _stored_fields(component_type: Any) -> list[str]:
    # The mel front end is the codec's, which stores it.
    return [name for name in _fields(component_type) if name != "mel"]
