"""Tiny records whose labels allow to train the embedded tagger."""

from pathlib import Path

import numpy as np
import tiny

from flowley_jax.data.components import Components
from flowley_jax.data.generated import write_generated_records
from flowley_jax.data.record import arrays_of, open_records, write_records

LABELS = ("glass bounces", "metal swings", "metal bounces")


def write_labelled_records(folder: Path, *, latents: int = tiny.AUDIO, labels=LABELS) -> Path:
    """Write records of 40 training and 10 valid clips; clips in turn have the labels, which can be heard."""
    source = folder / "unlabelled"
    write_generated_records(
        source,
        audio_length=latents,
        audio_dim=tiny.MODEL.audio_dim,
        video_fps=tiny.FPS,
        video_dim=tiny.MODEL.video_dim,
        text_length=9,
        text_dim=tiny.MODEL.text_dim,
        count=40,
        seed=0,
    )
    components = Components.load(source)

    def examples(split):
        for row, example in enumerate(open_records(source, split)):
            label, arrays = labels[row % len(labels)], arrays_of(example)
            colour = np.random.default_rng([*label.encode()]).standard_normal(tiny.MODEL.audio_dim)
            arrays["audio_mean"] = arrays["audio_mean"] + 2.0 * colour.astype(np.float32)
            yield {**arrays, **tiny.texts_of(example), "label": label}

    splits = {split: lambda split=split: examples(split) for split in ("train", "valid")}
    write_records(folder / "records", components.dims, splits)
    components.save(folder / "records")
    return folder / "records"
