"""Flags that name a model, for every program that asks one."""

import os

from absl import flags

from data_prep.soundcap.look import Viewing
from data_prep.soundcap.models import CaptionModel
from flowley_jax.errors import FlowleyError


def define_model_flags(*, sound: bool) -> None:
    """Defines them, for a program that has defined --table.

    Args:
      sound: whether there is a choice to let the model hear.
    """
    # --help shows the flags of the main module alone.
    main = flags.FLAGS.find_module_defining_flag("table")
    flags.DEFINE_string(
        "model",
        None,
        "Folder or hub name of a model; the server's name for it.",
        required=True,
        module_name=main,
    )
    flags.DEFINE_string(
        "adapter", "", "Folder of a LoRA adapter (data_prep.soundcap.finetune).", module_name=main
    )
    flags.DEFINE_string(
        "server", "", "http://HOST:8000/v1 of a server that speaks OpenAI's protocol.", module_name=main
    )
    flags.DEFINE_string(
        "key_variable",
        "OPENAI_API_KEY",
        "Environment variable with the server's key, if any.",
        module_name=main,
    )
    flags.DEFINE_integer(
        "at_once", None, "Clips in a batch (4), or requests at a time (16).", lower_bound=1, module_name=main
    )
    flags.DEFINE_integer("max_tokens", 128, "Longest answer in tokens.", lower_bound=1, module_name=main)
    flags.DEFINE_float(
        "seconds", 10.0, "How much of a clip is shown, from its start.", lower_bound=0.1, module_name=main
    )
    flags.DEFINE_float(
        "fps", 2.0, "Frames for each second that are shown.", lower_bound=0.1, module_name=main
    )
    flags.DEFINE_integer("size", 448, "Longest side of a frame in pixels.", lower_bound=28, module_name=main)
    flags.DEFINE_string("device", "", "cuda, cpu, …; by default the first GPU.", module_name=main)
    flags.DEFINE_enum(
        "weights_dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the weights.", module_name=main
    )
    if sound:
        flags.DEFINE_bool("sound", False, "Let the model hear the clips, too.", module_name=main)


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
