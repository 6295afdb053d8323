"""The interface of a caption model, and the flags that choose one."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from absl import flags

from data_prep.rejection import Rejection
from data_prep.soundcap.clip_view import ClipView, ViewConfig
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import SECONDS, Range
from flowley_jax.errors import FlowleyError

# The environment variable that programs for such servers read.
KEY_VARIABLE = "OPENAI_API_KEY"
# The published models take no more frames of a video.
MAX_FRAMES = 768
# Reason code of a clip that the model does not accept.
REFUSED = "model"


class CaptionModel(Protocol):
    """A model that answers a prompt about clips.

    Attributes:
      identity: values that identify the model, for the provenance of its captions.
      batch_size: number of clips per call.
    """

    batch_size: int

    @property
    def identity(self) -> Mapping[str, str]: ...

    def __call__(self, clips: Sequence[ClipView], prompt: str) -> list[str | Rejection]:
        """Return one answer per clip, in order, or the reason why there is none.

        Raises:
          FlowleyError: the model cannot answer at all.
        """
        ...

    def close(self) -> None:
        """Give back the memory and the connections of the model; it cannot be asked any more."""
        ...


def open_model(
    model: str,
    *,
    adapter: str = "",
    server: str = "",
    batch_size: int | None = None,
    max_tokens: int = 128,
    key: str | None = None,
    sound: bool = False,
    device: str = "",
    dtype: str = "auto",
) -> CaptionModel:
    """Return a model on this machine, or on a server if `server` is given.

    `LocalModel` and `ServerModel` describe the arguments.

    Raises:
      FlowleyError: the model cannot be loaded, or the arguments contradict each other.
    """
    if server:
        from data_prep.soundcap.server import ServerModel

        if adapter:
            raise FlowleyError(
                f"adapter={adapter} must be empty with a server, which loads adapters when it starts "
                "(docs/soundcap.md)"
            )
        return ServerModel(server, model, batch_size=batch_size or 16, max_tokens=max_tokens, key=key)
    from data_prep.soundcap.local import LocalModel

    return LocalModel(
        model,
        adapter=adapter,
        batch_size=batch_size or 4,
        max_tokens=max_tokens,
        sound=sound,
        device=device,
        dtype=dtype,
    )


def define_model_flags(*, captions: bool) -> None:
    """Define the flags that choose a model, for a program that has defined --table.

    Args:
      captions: whether the program writes captions, and so also takes servers and models that hear.
    """
    # --help shows only the flags of the main module.
    main_module = flags.FLAGS.find_module_defining_flag("table")

    def define(kind: str, name: str, default: Any, text: str, **options: Any) -> None:
        getattr(flags, f"DEFINE_{kind}")(name, default, help=text, module_name=main_module, **options)

    def define_count(name: str, default: int | None, text: str, least: int, most: int) -> None:
        define_int(name, default, text, Range(least=least, most=most), module_name=main_module)

    if captions:
        model = "Folder or hub name of a model, or the server's name for it."
        define("string", "adapter", "", "Folder of a LoRA adapter (data_prep.soundcap.finetune).")
        define("string", "server", "", "http://HOST:8000/v1 of a server with an OpenAI-compatible API.")
        define("string", "key_variable", KEY_VARIABLE, "Environment variable with the server's API key.")
        define_count("max_tokens", 128, "Longest answer in tokens.", 1, 65_536)
        define("bool", "sound", False, "Let the model hear the clips as well.")
        at_once = "Clips per batch (default 4), or concurrent requests (default 16)."
    else:
        model, at_once = "Folder or hub name of a model.", "Clips per batch on each device (default 1)."
    define("string", "model", None, model, required=True)
    define_count("at_once", None, at_once, 1, 1024)
    seconds, rates = Range(least=0.1, most=SECONDS.most), Range(least=0.1, most=120)
    define_float(
        "seconds", 10.0, "Seconds of each clip to show, from its start.", seconds, module_name=main_module
    )
    define_float("fps", 2.0, "Frames per second to show.", rates, module_name=main_module)
    define_count("size", 448, "Longest side of a frame in pixels.", 28, 4096)
    define("string", "device", "", "Device of the model: cuda, cpu, …; by default the first GPU.")
    define(
        "enum", "weights_dtype", "auto", "Type of the weights.", enum_values=["auto", "float32", "bfloat16"]
    )


def view_from_flags() -> ViewConfig:
    """Return the view that the flags describe.

    Raises:
      FlowleyError: the view has too many frames.
    """
    values = flags.FLAGS
    if (frames := round(values.seconds * values.fps)) > MAX_FRAMES:
        raise FlowleyError(
            f"--seconds={values.seconds:g} at --fps={values.fps:g} are {frames} frames, at most {MAX_FRAMES} "
            "are allowed"
        )
    sound = bool(values.sound) if "sound" in values else False
    return ViewConfig(seconds=values.seconds, fps=values.fps, size=values.size, sound=sound)


def key_from_flag() -> str | None:
    """Return the API key that --key-variable names, or None if there is none.

    Raises:
      FlowleyError: the user gave the name of a variable that does not exist. The message does not repeat it:
        it may be the key itself.
    """
    flag = flags.FLAGS["key_variable"]
    key = os.environ.get(flag.value or "")
    if key is None and flag.value and flag.present:
        raise FlowleyError("--key-variable must name a variable of the environment, and there is none such")
    return key


def model_from_flags() -> CaptionModel:
    """Return the model that the flags describe.

    Raises:
      FlowleyError: the model cannot be loaded, or flags contradict each other.
    """
    values = flags.FLAGS
    return open_model(
        values.model,
        adapter=values.adapter,
        server=values.server,
        batch_size=values.at_once,
        max_tokens=values.max_tokens,
        key=key_from_flag(),
        sound=view_from_flags().sound,
        device=values.device,
        dtype=values.weights_dtype,
    )
