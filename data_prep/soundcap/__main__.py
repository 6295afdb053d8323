"""Captions for a clip table: python -m data_prep.soundcap --table clips.tsv --model MODEL --out DIR

With --sound the model hears the clips, for the captions that another one is trained to give without.
"""

from pathlib import Path

from absl import flags

from data_prep.soundcap.options import define_model_flags, model_from_flags, viewing_from_flags
from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError

_TABLE = flags.DEFINE_string("table", None, "Clip table (TSV); only the paths are needed.", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for captions.tsv, rejected.tsv and the journal.", required=True
)
_SPLIT = flags.DEFINE_string("split", None, "Rows of the table to take; all if not given.")
_PROMPT = flags.DEFINE_string(
    "prompt", None, "Name of a prompt in data_prep/soundcap/prompts, or a file; by default the one that fits."
)
_DECODERS = flags.DEFINE_integer("decoders", 2, "Processes that read clips.", lower_bound=1)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 120.0, "Seconds after which reading a clip is given up.", lower_bound=0.1
)
_RETRY = flags.DEFINE_bool("retry", False, "Ask again about clips without a good caption.")
_AUDIT = flags.DEFINE_integer("audit", 0, "Write audit.html with so many of the clips.", lower_bound=0)
define_model_flags(captions=True)


def main() -> int:
    """Command line."""
    from data_prep.soundcap.audit import write_audit
    from data_prep.soundcap.captions import Reading, caption_clips, tell
    from data_prep.soundcap.prompts import CAPTIONS, TARGETS, Prompt
    from flowley_jax.data.clip_table import read_clip_table

    out, viewing = Path(_OUT.value), viewing_from_flags()
    clips = read_clip_table(_TABLE.value, columns=("video_path", "text_description"))
    splits = sorted({clip.split for clip in clips})
    clips = [clip for clip in clips if _SPLIT.value in (None, clip.split)]
    if not clips:
        raise FlowleyError(
            f"{_TABLE.value}: no row of the split {_SPLIT.value!r}; it has {', '.join(splits)}"
        )
    prompt = Prompt.read(_PROMPT.value or (TARGETS if viewing.sound else CAPTIONS))
    captioned = caption_clips(
        clips,
        out,
        model_from_flags(),
        prompt,
        viewing,
        reading=Reading(decoders=_DECODERS.value, time_limit=_TIME_LIMIT.value),
        retry=_RETRY.value,
    )
    tell(out, clips, captioned)
    if not captioned.captions:
        raise FlowleyError(f"{out}: no clip has a caption; --retry asks again")
    if _AUDIT.value:
        page = out / "audit.html"
        write_audit(page, clips, captioned.captions, number=_AUDIT.value, title=f"Captions by {prompt.name}")
        print(f"clips with captions to look at: {page}")
    return 0


if __name__ == "__main__":
    run_main(main)
