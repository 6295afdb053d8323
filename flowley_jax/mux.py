"""Put a sound under a video: python -m flowley_jax.mux --video a.mp4 --audio b.wav --out c.mp4

The picture is copied without encoding it again, where the new file can hold it. --keep-original mixes the
video's own sound in.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags

from flowley_jax.cli import run_main
from flowley_jax.common.number_flags import define_float
from flowley_jax.common.ranges import SHARES
from flowley_jax.errors import FlowleyError

_VIDEO = flags.DEFINE_string("video", None, "Video whose picture is copied.", required=True)
_AUDIO = flags.DEFINE_string("audio", None, "Sound, or a video with the sound to take.", required=True)
_OUT = flags.DEFINE_string("out", None, "File to write: .mp4, .mkv or .mov.", required=True)
_KEEP_ORIGINAL = define_float(
    "keep_original", 0.0, "Factor of the video's own sound in the mix; 0 leaves it out.", SHARES
)
_STEREO = flags.DEFINE_bool("stereo", False, "Write two channels, even if both are the same.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file --out if it exists.")
# Remarks start at this difference between the ends of sound and picture, in seconds.
_NOTED_SECONDS = 0.1


def main() -> int:
    """Run the command line."""
    from flowley_jax.common.files import check_new_file
    from flowley_jax.media.mix import Mixing, mixed, read_sound
    from flowley_jax.media.picture import check_picture
    from flowley_jax.media.read import probe
    from flowley_jax.media.write import check_mux_suffix, mux_audio

    video, audio, out = (Path(flag.value or "") for flag in (_VIDEO, _AUDIO, _OUT))
    check_mux_suffix(out)
    for source in (video, audio):
        if out.exists() and source.exists() and out.samefile(source):
            raise FlowleyError(f"--out {out}: would replace an input; choose another name")
    check_new_file(out, overwrite=_OVERWRITE.value)
    check_picture(video, out)
    info, (sound, rate) = probe(video), read_sound(audio)
    if _KEEP_ORIGINAL.value and not info.has_audio:
        raise FlowleyError(f"{video}: has no sound of its own; leave out --keep-original")
    sound = _fitted(sound, rate, info.duration, video)
    mixing = Mixing(keep_original=_KEEP_ORIGINAL.value, stereo=_STEREO.value)
    mux_audio(video, *mixed(sound, rate, mixing, video), out)
    print(out)
    return 0


def _fitted(sound: np.ndarray, rate: int, seconds: float, video: Path) -> np.ndarray:
    """Return the sound at the length of the video: its end is cut, or silence follows."""
    count, length = round(seconds * rate), len(sound) / rate
    if abs(length - seconds) > _NOTED_SECONDS:
        done = "the rest is cut" if length > seconds else "silence follows"
        print(f"the sound has {length:.2f} s, and {video} {seconds:.2f} s: {done}", file=sys.stderr)
    missing = max(0, count - len(sound))
    return np.pad(sound[:count], [(0, missing), *[(0, 0)] * (sound.ndim - 1)])


if __name__ == "__main__":
    run_main(main)
