"""The registry of components: every encoder, codec and vocoder, by role and name.

To add a component, write its class (see the protocols in `encoders` and `audio`) and list it in `REGISTRY`.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from flowley_jax.errors import FlowleyError

Role = Literal["video_encoder", "text_encoder", "codec", "vocoder"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComponentEntry:
    """A registered component.

    Attributes:
      name: name in `components.json` and on the command line.
      path: module and class, such as `package.module:Class`.
      bundle_format: format of the published weights that it needs (a key of `interop.registry.FORMATS`);
        empty for an embedded component, which needs none.
    """

    name: str
    path: str
    bundle_format: str = ""

    def load(self) -> Any:
        """Import and return the class.

        Classes are imported on first use, so that processes that only decode media need not import JAX.
        """
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


# Per role, the first embedded component is the default; the first pretrained one is the published system's.
REGISTRY: Mapping[Role, tuple[ComponentEntry, ...]] = {
    "video_encoder": (
        ComponentEntry(name="pixels", path="flowley_jax.encoders.pixels:PixelEncoder"),
        ComponentEntry(name="clip", path="flowley_jax.encoders.clip_frames:ClipFrames", bundle_format="clip"),
    ),
    "text_encoder": (
        ComponentEntry(name="hashed_words", path="flowley_jax.encoders.hashed_text:HashedTextEncoder"),
        ComponentEntry(name="t5", path="flowley_jax.encoders.t5_text:T5Text", bundle_format="t5"),
    ),
    "codec": (
        ComponentEntry(name="pca", path="flowley_jax.audio.pca:PcaCodec"),
        ComponentEntry(
            name="audio_vae", path="flowley_jax.audio.vae_codec:VaeCodec", bundle_format="audio_vae"
        ),
    ),
    "vocoder": (
        ComponentEntry(name="griffin_lim", path="flowley_jax.audio.griffin_lim:GriffinLimVocoder"),
        ComponentEntry(
            name="bigvgan", path="flowley_jax.audio.bigvgan_vocoder:BigVganVocoder", bundle_format="bigvgan"
        ),
    ),
}


def find_component(role: Role, name: object) -> ComponentEntry:
    """Return the component with this role and name.

    Raises:
      FlowleyError: there is none; the message lists the known names.
    """
    for entry in REGISTRY[role]:
        if entry.name == name:
            return entry
    known = ", ".join(sorted(entry.name for entry in REGISTRY[role]))
    raise FlowleyError(f"{role} {name!r} is unknown; known: {known}")


def default_component(role: Role) -> ComponentEntry:
    """Return the embedded component that a role has by default."""
    return next(entry for entry in REGISTRY[role] if not entry.bundle_format)


def embedded_component(role: Role, name: str) -> ComponentEntry | None:
    """Return the embedded component of that name, or None."""
    return next((entry for entry in REGISTRY[role] if entry.name == name and not entry.bundle_format), None)


def pretrained_component(role: Role, bundle_format: str = "") -> ComponentEntry:
    """Return the component that a bundle of this format is made for.

    If `bundle_format` is empty or unknown to the role, return the published system's component, whose
    constructor then names the format it needs.
    """
    pretrained = [entry for entry in REGISTRY[role] if entry.bundle_format]
    return next((entry for entry in pretrained if entry.bundle_format == bundle_format), pretrained[0])
