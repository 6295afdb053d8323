"""Caption the clips of a table: python -m data_prep.soundcap --table clips.tsv --model MODEL --out DIR

With --sound the model hears the clips. Its captions are the training targets of a model that only sees.
"""

from pathlib import Path

from absl import flags

from data_prep.soundcap.models import define_model_flags, model_from_flags, view_from_flags
from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import PROCESSES, TIME_LIMITS, Range
from flowley_jax.errors import FlowleyError

_TABLE = flags.DEFINE_string("table", None, "Clip table (TSV); only the paths are needed.", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for captions.tsv, rejected.tsv and captions.jsonl.", required=True
)
_SPLIT = flags.DEFINE_string("split", None, "Split of the table to caption; all if not given.")
_PROMPT = flags.DEFINE_string(
    "prompt",
    None,
    "Name of a prompt in data_prep/soundcap/prompts, or a text file; by default targets_v1 with --sound, "
    "captions_v1 without.",
)
_DECODERS = define_int("decoders", 2, "Number of processes that read clips.", PROCESSES)
_TIME_LIMIT = define_float("time_limit", 120.0, "Time limit for reading one clip, in seconds.", TIME_LIMITS)
_RETRY = flags.DEFINE_bool("retry", False, "Ask again about clips without a good caption.")
_AUDIT = define_int(
    "audit", 0, "Write audit.html with this many randomly drawn clips and their captions.", Range(least=0)
)
define_model_flags(captions=True)


def main() -> int:
    """Run the command line; return 0 if at least one clip has a caption."""
    from data_prep.soundcap.audit import write_audit
    from data_prep.soundcap.captions import ReaderConfig, caption_clips, log_summary
    from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
    from flowley_jax.data.clip_table import read_clip_table

    out, view = Path(_OUT.value), view_from_flags()
    clips = read_clip_table(_TABLE.value, columns=("video_path", "text_description"))
    splits = sorted({clip.split for clip in clips})
    clips = [clip for clip in clips if _SPLIT.value in (None, clip.split)]
    if not clips:
        raise FlowleyError(
            f"{_TABLE.value}: no row in split {_SPLIT.value!r}; the splits are {', '.join(splits)}"
        )
    prompt = Prompt.read(_PROMPT.value or (TARGETS if view.sound else CAPTIONS))
    result = caption_clips(
        clips,
        out,
        model_from_flags(),
        prompt,
        view,
        reader=ReaderConfig(workers=_DECODERS.value, time_limit=_TIME_LIMIT.value),
        retry=_RETRY.value,
    )
    log_summary(out, clips, result)
    if not result.captions:
        raise FlowleyError(f"{out}: no clip has a caption; use --retry to ask again")
    if _AUDIT.value:
        page = out / "audit.html"
        write_audit(
            page,
            clips,
            result.captions,
            number=_AUDIT.value,
            title=f"Captions by {prompt.name}",
            time_limit=_TIME_LIMIT.value,
        )
        print(f"captions to check: {page}")
    return 0


if __name__ == "__main__":
    run_main(main)
