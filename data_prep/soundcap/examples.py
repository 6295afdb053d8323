"""Which captioned clips to train on, and which to hold out."""

import hashlib
from collections.abc import Mapping, Sequence

from flowley_jax.data.clip_table import TableClip

# The part of the train split that is held out if the valid split has no captions.
_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.05, 500

# A clip and the caption that the model should give.
Example = tuple[TableClip, str]


def split_examples(
    clips: Sequence[TableClip], captions: Mapping[str, str]
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and those to hold out; the test split is in neither.

    If no clip of the valid split has a caption, 5 % of the train split are held out, at most 500 clips.

    Args:
      clips: the clips of a table.
      captions: captions by clip id; clips without one, or with an empty one, are left out.
    """
    examples = [(clip, captions[clip.id]) for clip in clips if captions.get(clip.id)]
    train = [example for example in examples if example[0].split == "train"]
    valid = [example for example in examples if example[0].split == "valid"]
    if valid or len(train) < 2:
        return train, valid
    count = min(max(round(_HELD_OUT_SHARE * len(train)), 1), _MAX_HELD_OUT)
    # By a hash of the id: with more captions, nearly the same clips are held out.
    ids = sorted((clip.id for clip, _ in train), key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = set(ids[:count])
    return (
        [example for example in train if example[0].id not in held_out],
        [example for example in train if example[0].id in held_out],
    )
