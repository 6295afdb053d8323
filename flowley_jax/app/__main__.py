"""Serve a web page that makes sound for videos: python -m flowley_jax.app

Without --workdir and --published, the page uses the demonstration's model, which comes with the package.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.compilation_cache import define_compilation_cache, use_compilation_cache
from flowley_jax.common.model_flags import ModelFlags
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import Range
from flowley_jax.errors import FlowleyError

if TYPE_CHECKING:
    from flowley_jax.sampling.sampler import Sampler

_MODEL = ModelFlags()
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in, without a password."
)
_PORT = define_int("port", 7860, "Port to listen on.", Range(least=1, most=65_535))
_MOST_SECONDS = define_float(
    "most_seconds", 60.0, "Longest part of a video that is used, in seconds.", Range(least=1, most=3600)
)
_MOST_MEGABYTES = define_int("most_megabytes", 500, "Largest upload, in megabytes.", Range(least=1))
_COMPILATION_CACHE = define_compilation_cache()


def main() -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    _MODEL.check()
    # As Ctrl-C does, so that the visitors' files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Set before Gradio is imported, which reads them then.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="flowley_page_") as files:
        os.environ["GRADIO_TEMP_DIR"] = files
        _serve(Path(files))
    return 0


def _serve(files: Path) -> None:
    try:
        import gradio as gr  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise FlowleyError("the page needs Gradio: in a clone, pip install -e '.[app]'") from error

    from flowley_jax.app.page import CSS, build_page
    from flowley_jax.app.service import Service

    use_compilation_cache(_COMPILATION_CACHE.value)
    sampler, about, examples = _model()
    page = build_page(
        Service(sampler), about=about, examples=examples, most_seconds=_MOST_SECONDS.value, files=files
    )
    fonts = ["system-ui", "sans-serif"]
    try:
        page.launch(
            server_name=_HOST.value,
            server_port=_PORT.value,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size=f"{_MOST_MEGABYTES.value}mb",
            theme=gr.themes.Soft(font=fonts, font_mono=["ui-monospace", "monospace"]),
            css_paths=CSS,
            enable_monitoring=False,
            ssr_mode=False,
        )
    except OSError as error:
        raise FlowleyError(
            f"cannot listen on {_HOST.value}:{_PORT.value}, which is in use or not of this machine; choose "
            "another --port or --host"
        ) from error
    print(f"the page is at http://{_HOST.value}:{_PORT.value} (Ctrl-C stops it)", flush=True)
    page.block_thread()


def _model() -> "tuple[Sampler, str, list[tuple[Path, str]]]":
    """Return the sampler, what the page says about it, and examples."""
    from flowley_jax.runs.hub_models import local_folder
    from flowley_jax.runs.included_model import DESCRIPTION, INCLUDED, examples
    from flowley_jax.sampling.sampler import Sampler

    if _MODEL.published:
        return Sampler.from_published(_MODEL.published, dtype=_MODEL.dtype), "", []
    folder = local_folder(_MODEL.workdir or INCLUDED)
    about = "" if _MODEL.workdir else f"This is {DESCRIPTION}. `--workdir` names another model."
    return Sampler.from_run(folder), about, examples(folder)


if __name__ == "__main__":
    run_main(main)
