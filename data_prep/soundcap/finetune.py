"""Teaches a model to caption silent videos: python -m data_prep.soundcap.finetune --table clips.tsv
--captions targets/captions.tsv --model Qwen/Qwen2.5-VL-7B-Instruct --out DIR

On several GPUs: torchrun --nproc-per-node 8 -m data_prep.soundcap.finetune …
"""

from pathlib import Path

from absl import flags

from data_prep.soundcap.options import define_model_flags, viewing_from_flags
from flowley_jax.cli import run_main
from flowley_jax.errors import FlowleyError

STOPPED_EARLY = 75

_TABLE = flags.DEFINE_string("table", None, "Clip table (TSV); its valid split is held out.", required=True)
_CAPTIONS = flags.DEFINE_string("captions", None, "What to answer: a TSV with id and caption.", required=True)
_OUT = flags.DEFINE_string(
    "out", None, "Folder for the training; the adapter is in `adapter`.", required=True
)
_PROMPT = flags.DEFINE_string("prompt", None, "Name of a prompt, or a file.")
_RANK = flags.DEFINE_integer("rank", 16, "Of the LoRA adapters.", lower_bound=1)
_EPOCHS = flags.DEFINE_float("epochs", 1.0, "Passes over the captions.", lower_bound=0.0)
_ACCUMULATION = flags.DEFINE_integer("accumulation", 16, "Batches for each step.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-4, "At its highest.", lower_bound=0.0)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 200, "Steps between checkpoints.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that read clips.", lower_bound=0)
_CHECKPOINTING = flags.DEFINE_bool("checkpointing", False, "Compute activations again, to save memory.")
define_model_flags(captions=False)


def main() -> int:
    """Command line."""
    from data_prep.rows import read_captions
    from data_prep.soundcap.prompts import CAPTIONS, Prompt
    from flowley_jax.data.clip_table import read_clip_table

    values = flags.FLAGS
    if values.device not in ("", "cpu"):
        raise FlowleyError(
            f"--device={values.device}: fine-tuning takes cpu, or the GPUs that CUDA_VISIBLE_DEVICES names"
        )
    clips = read_clip_table(_TABLE.value)
    captions = read_captions({"targets": _CAPTIONS.value})["targets"]
    from data_prep.soundcap.local import LocalModel
    from data_prep.soundcap.training import TuningConfig, finetune

    # On the host: the trainer knows which process has which GPU.
    model = LocalModel(values.model, device="cpu", dtype=values.weights_dtype)
    config = TuningConfig(
        rank=_RANK.value,
        alpha=2.0 * _RANK.value,
        epochs=_EPOCHS.value,
        batch_size=values.at_once or 1,
        accumulation=_ACCUMULATION.value,
        learning_rate=_LEARNING_RATE.value,
        save_every=_SAVE_EVERY.value,
        workers=_WORKERS.value,
        checkpointing=_CHECKPOINTING.value,
        on_cpu=values.device == "cpu",
    )
    prompt = Prompt.read(_PROMPT.value or CAPTIONS)
    adapter = finetune(clips, captions, model, prompt, viewing_from_flags(), config, Path(_OUT.value))
    if adapter is None:
        print("the same command goes on")
        return STOPPED_EARLY
    print(f"adapter: {adapter} (python -m data_prep.soundcap --model {values.model} --adapter {adapter})")
    return 0


if __name__ == "__main__":
    run_main(main)
