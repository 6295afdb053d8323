"""Flags that name a model, for every program that asks one."""

import os

from absl import flags

from data_prep.soundcap.look import Viewing
from data_prep.soundcap.models import CaptionModel
from flowley_jax.errors import FlowleyError


def define_model_flags(*, captions: bool) -> None:
    """Defines them, for a program that has defined --table.

    Args:
      captions: whether the model is asked for captions, which a server and one that hears can write, too.
    """
    # --help shows the flags of the main module alone.
    main = flags.FLAGS.find_module_defining_flag("table")

    def define(kind, name, default, text, **options):
        getattr(flags, f"DEFINE_{kind}")(name, default, help=text, module_name=main, **options)

    if captions:
        model = "Folder or hub name of a model; the server's name for it."
        define("string", "adapter", "", "Folder of a LoRA adapter (data_prep.soundcap.finetune).")
        define("string", "server", "", "http://HOST:8000/v1 of a server that speaks OpenAI's protocol.")
        define("string", "key_variable", "OPENAI_API_KEY", "Environment variable with the server's key.")
        define("integer", "max_tokens", 128, "Longest answer in tokens.", lower_bound=1)
        define("bool", "sound", False, "Let the model hear the clips, too.")
        at_once = "Clips in a batch (4), or requests at a time (16)."
    else:
        model, at_once = "Folder or hub name of a model.", "Clips in a batch on each device (1)."
    define("string", "model", None, model, required=True)
    define("integer", "at_once", None, at_once, lower_bound=1)
    define("float", "seconds", 10.0, "How much of a clip is shown, from its start.", lower_bound=0.1)
    define("float", "fps", 2.0, "Frames for each second that are shown.", lower_bound=0.1)
    define("integer", "size", 448, "Longest side of a frame in pixels.", lower_bound=28)
    define("string", "device", "", "cuda, cpu, …; by default the first GPU.")
    define(
        "enum", "weights_dtype", "auto", "Type of the weights.", enum_values=["auto", "float32", "bfloat16"]
    )


def viewing_from_flags() -> Viewing:
    """How clips are looked at."""
    values = flags.FLAGS
    sound = bool(values.sound) if "sound" in values else False
    return Viewing(seconds=values.seconds, fps=values.fps, size=values.size, sound=sound)


def model_from_flags() -> CaptionModel:
    """The model.

    Raises:
      FlowleyError: it cannot be loaded, or options do not go together.
    """
    values = flags.FLAGS
    return open_model(
        values.model,
        adapter=values.adapter,
        server=values.server,
        at_once=values.at_once,
        max_tokens=values.max_tokens,
        key=os.environ.get(values.key_variable),
        sound=viewing_from_flags().sound,
        device=values.device,
        dtype=values.weights_dtype,
    )


def open_model(
    model: str,
    *,
    adapter: str = "",
    server: str = "",
    at_once: int | None = None,
    max_tokens: int = 128,
    key: str | None = None,
    sound: bool = False,
    device: str = "",
    dtype: str = "auto",
) -> CaptionModel:
    """A model of this machine or of a server; see `LocalModel` and `ServerModel` for the arguments.

    Raises:
      FlowleyError: it cannot be loaded, or the arguments do not go together.
    """
    if server:
        from data_prep.soundcap.server import ServerModel

        if adapter:
            raise FlowleyError(
                "an adapter is for a local model; a server is told of adapters where it starts"
            )
        return ServerModel(server, model, at_once=at_once or 16, max_tokens=max_tokens, key=key)
    from data_prep.soundcap.local import LocalModel

    return LocalModel(
        model,
        adapter=adapter,
        at_once=at_once or 4,
        max_tokens=max_tokens,
        sound=sound,
        device=device,
        dtype=dtype,
    )
