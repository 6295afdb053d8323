"""Fine-tune a model to caption silent videos: python -m data_prep.soundcap.finetune --table clips.tsv
--captions targets/captions.tsv --model Qwen/Qwen2.5-VL-7B-Instruct --out DIR

On several GPUs: torchrun --nproc-per-node 8 -m data_prep.soundcap.finetune …
"""

from pathlib import Path

from absl import flags

from data_prep.soundcap.models import define_model_flags, view_from_flags
from flowley_jax.cli import STOPPED_EARLY, run_main
from flowley_jax.common.number_flags import define_float, define_int
from flowley_jax.common.ranges import PROCESSES, TIME_LIMITS, Range
from flowley_jax.errors import FlowleyError

_TABLE = flags.DEFINE_string(
    "table", None, "Clip table (TSV); only its train split is trained on.", required=True
)
_CAPTIONS = flags.DEFINE_string(
    "captions", None, "Target captions: a TSV with id and caption.", required=True
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder for checkpoints and metrics.jsonl; the adapter is written to its sub-folder `adapter`.",
    required=True,
)
_PROMPT = flags.DEFINE_string("prompt", None, "Name of a prompt, or a text file; captions_v1 by default.")
_RANK = define_int("rank", 16, "Rank of the LoRA adapters.", Range(least=1, most=1024))
_EPOCHS = define_float("epochs", 1.0, "Passes over the captions.", Range(above=0, most=1000))
_ACCUMULATION = define_int(
    "accumulation", 16, "Batches per optimiser step (gradient accumulation).", Range(least=1, most=65_536)
)
_LEARNING_RATE = define_float("learning_rate", 1e-4, "Peak learning rate.", Range(above=0, most=1))
_SAVE_EVERY = define_int("save_every", 200, "Steps between checkpoints.", Range(least=1))
_WORKERS = define_int(
    "workers", 2, "Number of processes that read clips.", Range(least=0, most=PROCESSES.most)
)
_TIME_LIMIT = define_float("time_limit", 120.0, "Time limit for reading one clip, in seconds.", TIME_LIMITS)
_CHECKPOINTING = flags.DEFINE_bool(
    "checkpointing", False, "Recompute activations in the backward pass to save memory."
)
define_model_flags(captions=False)


def main() -> int:
    """Run the command line; return 0 when the adapter is written, 75 when a signal stopped the training."""
    from data_prep.caption_files import read_captions
    from data_prep.soundcap.prompts import CAPTIONS, Prompt
    from flowley_jax.data.clip_table import read_clip_table

    values = flags.FLAGS
    if values.device not in ("", "cpu"):
        raise FlowleyError(
            f"device={values.device} must be cpu or empty; choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    prompt, view = Prompt.read(_PROMPT.value or CAPTIONS), view_from_flags()
    clips = read_clip_table(_TABLE.value)
    captions = read_captions({"targets": _CAPTIONS.value})["targets"]
    from data_prep.soundcap.local import LocalModel
    from data_prep.soundcap.training import FinetuneConfig, finetune

    # On the host at first: the trainer moves it to the GPU of its process.
    model = LocalModel(values.model, device="cpu", dtype=values.weights_dtype)
    config = FinetuneConfig(
        rank=_RANK.value,
        alpha=2.0 * _RANK.value,
        epochs=_EPOCHS.value,
        batch_size=values.at_once or 1,
        accumulation=_ACCUMULATION.value,
        learning_rate=_LEARNING_RATE.value,
        save_every=_SAVE_EVERY.value,
        workers=_WORKERS.value,
        time_limit=_TIME_LIMIT.value,
        checkpointing=_CHECKPOINTING.value,
        on_cpu=values.device == "cpu",
    )
    adapter = finetune(clips, captions, model, prompt, view, config, Path(_OUT.value))
    if adapter is None:
        print("run the same command again to resume")
        return STOPPED_EARLY
    print(f"adapter: {adapter} (python -m data_prep.soundcap --model {values.model} --adapter {adapter})")
    return 0


if __name__ == "__main__":
    run_main(main)
