"""Fine-tuning of a vision-language model to say, from the silent video, what one that hears has said."""

import dataclasses
import functools
import hashlib
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.decoder import Decoder
from data_prep.rejection import Rejection
from data_prep.soundcap.local import LocalModel
from data_prep.soundcap.look import Seen, Viewing, look
from data_prep.soundcap.prompts import Prompt
from flowley_jax.data.clip_table import Clip
from flowley_jax.errors import FlowleyError
from flowley_jax.whole_files import append_line, write_text

try:
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise FlowleyError("SoundCap's own models need PyTorch: pip install 'flowley-jax[soundcap]'") from error

ADAPTER_FOLDER = "adapter"
PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.jsonl"
_UNREADABLE_FILE = "unreadable.tsv"
_UNTRAINED = -100
# The maps of the language model; the eyes stay as they are.
_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """How a model is fine-tuned.

    Attributes:
      rank, alpha: of the LoRA adapters, which count alpha / rank times.
      epochs: passes over the captions; SoundCap takes one.
      batch_size, accumulation: clips for each device at a time, and batches for each step.
      learning_rate: at its highest, after 3 % of the steps; it falls to zero along a cosine.
      save_every: steps between checkpoints, from which a run that was stopped goes on.
      workers: processes that read clips; 0 reads in the training process.
      time_limit: seconds after which reading a clip is given up.
      checkpointing: whether activations are computed again, to save memory.
      on_cpu: whether GPUs are left alone; otherwise each process takes its own.
    """

    rank: int = 16
    alpha: float = 32.0
    epochs: float = 1.0
    batch_size: int = 1
    accumulation: int = 16
    learning_rate: float = 1e-4
    save_every: int = 200
    workers: int = 2
    time_limit: float = 120.0
    checkpointing: bool = False
    on_cpu: bool = False
    seed: int = 0


def finetune(
    clips: Sequence[Clip],
    captions: Mapping[str, str],
    model: LocalModel,
    prompt: Prompt,
    viewing: Viewing,
    config: TuningConfig,
    out: Path,
) -> Path | None:
    """Trains LoRA adapters on the captions of clips, or goes on, or finds it done.

    Clips of the valid split are not trained on; their loss is measured at the end. A clip that cannot be read
    trains nothing and is listed in `out/unreadable.tsv`.

    Args:
      captions: by id.
      out: folder for checkpoints, `metrics.jsonl` and the adapter.

    Returns:
      The folder of the adapter; None where Ctrl-C or SIGTERM stopped it, with all its steps stored.

    Raises:
      FlowleyError: there is nothing to train on, or `out` holds another training.
    """
    train = [(clip, captions[clip.id]) for clip in clips if clip.id in captions and clip.split != "valid"]
    valid = [(clip, captions[clip.id]) for clip in clips if clip.id in captions and clip.split == "valid"]
    if not train:
        raise FlowleyError(
            f"{out}: none of {len(clips)} clips has a caption to train on; are the ids the same?"
        )
    adapter = out / ADAPTER_FOLDER
    provenance = _provenance(train, model, prompt, viewing, config)
    if _is_done(out, adapter, provenance):
        print(f"the adapter is made already: {adapter}")
        return adapter
    print(f"training on {len(train)} clips, {len(valid)} held out; adapter goes to {adapter}")
    transformers.set_seed(config.seed)
    tuned = peft.get_peft_model(
        model.model.train(),
        peft.LoraConfig(
            r=config.rank, lora_alpha=config.alpha, target_modules=_TARGETS, task_type="CAUSAL_LM"
        ),
    )
    if config.checkpointing:
        tuned.enable_input_require_grads()
    seen, held_out = (_Clips(pairs, viewing, config.time_limit, out) for pairs in (train, valid))
    stop = _Stop()
    trainer = _Trainer(
        model=tuned,
        args=_arguments(out, config),
        train_dataset=seen,
        eval_dataset=held_out if valid else None,
        data_collator=functools.partial(_collated, model=model, prompt=prompt.text, viewing=viewing),
        callbacks=[_Metrics(out / METRICS_FILE), stop],
    )
    last = get_last_checkpoint(str(out)) if out.is_dir() else None
    if last:
        print(f"going on from {last}")
    try:
        with stop:
            trainer.train(resume_from_checkpoint=last)
        if trainer.state.global_step < trainer.state.max_steps:
            print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
            return None
        if valid:
            trainer.evaluate()
    finally:
        seen.close()
        held_out.close()
    if trainer.is_world_process_zero():
        tuned.save_pretrained(str(adapter))
        write_text(adapter / PROVENANCE_FILE, json.dumps(provenance, indent=2) + "\n")
    return adapter


def _provenance(train, model: LocalModel, prompt: Prompt, viewing: Viewing, config: TuningConfig) -> dict:
    pairs = "".join(f"{clip.id}\t{caption}\n" for clip, caption in train)
    made_with = dataclasses.asdict(config)
    for unimportant in ("workers", "time_limit", "save_every", "checkpointing", "on_cpu"):
        del made_with[unimportant]
    return {
        **model.identity,
        "prompt": prompt.name,
        "prompt_sha256": prompt.sha256,
        "viewing": dataclasses.asdict(viewing),
        "config": made_with,
        "clips": len(train),
        "captions_sha256": hashlib.sha256(pairs.encode()).hexdigest(),
    }


def _is_done(out: Path, adapter: Path, provenance: dict) -> bool:
    """Whether the adapter is made; otherwise notes what is being made: nothing else is to go on from it."""
    begun = out / PROVENANCE_FILE
    if begun.is_file() and json.loads(begun.read_text()) != provenance:
        raise FlowleyError(
            f"{out}: holds a training on other captions or with other settings; choose another folder"
        )
    write_text(begun, json.dumps(provenance, indent=2) + "\n")
    return (adapter / PROVENANCE_FILE).is_file()


def _arguments(out: Path, config: TuningConfig):
    on_gpu = torch.cuda.is_available() and not config.on_cpu
    return transformers.TrainingArguments(
        output_dir=str(out),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.checkpointing,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        logging_steps=1,
        save_steps=config.save_every,
        save_total_limit=2,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to=[],
        seed=config.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu,
    )


class _Clips(torch.utils.data.Dataset):
    """Clips as the model sees them, each with its caption; None in place of one that cannot be read."""

    def __init__(self, pairs: Sequence[tuple[Clip, str]], viewing: Viewing, time_limit: float, out: Path):
        self._pairs, self._out = pairs, out
        # Started where it is first used: in each process that reads.
        self._decoder = Decoder(functools.partial(look, viewing), time_limit)

    def close(self) -> None:
        """Ends the process that reads."""
        self._decoder.close()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Seen | None, str]:
        clip, caption = self._pairs[index]
        seen = self._decoder(clip.source)
        if isinstance(seen, Rejection):
            self._note(f"{clip.id}\t{seen.reason}\t{seen.detail}")
            return None, caption
        return seen, caption

    def _note(self, line: str) -> None:
        """Lists an unreadable clip, once for all epochs."""
        path = self._out / _UNREADABLE_FILE
        if not path.exists() or line not in path.read_text(encoding="utf-8").splitlines():
            append_line(path, line)


def _collated(items: Sequence[tuple[Seen | None, str]], *, model: LocalModel, prompt: str, viewing: Viewing):
    """A batch with labels for the words of the answers alone, and none for a clip that is not there."""
    clips = [seen if seen is not None else _nothing(viewing) for seen, _ in items]
    batch = model.inputs(clips, prompt, [caption for _, caption in items])
    labels = torch.full_like(batch["input_ids"], _UNTRAINED)
    for row, (seen, caption) in enumerate(items):
        if seen is not None:
            answered = model.answer_tokens(prompt, caption)
            # Padding is on the left.
            labels[row, -answered:] = batch["input_ids"][row, -answered:]
    return {**batch, "labels": labels}


def _nothing(viewing: Viewing) -> Seen:
    import numpy as np

    return Seen(np.zeros((2, 28, 28, 3), np.uint8), viewing.fps)


class _Trainer(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        """The mean over no words is no number; a batch of clips that cannot be read changes nothing."""
        if (inputs["labels"] != _UNTRAINED).any():
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **options)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = 0.0 * outputs.logits.sum()
        return (loss, outputs) if return_outputs else loss


class _Metrics(transformers.TrainerCallback):
    def __init__(self, path: Path):
        self._path = path

    def on_train_begin(self, args, state, control, **_):
        """Steps behind the last checkpoint are done again."""
        if state.is_world_process_zero and self._path.exists():
            rows = self._path.read_text(encoding="utf-8").splitlines()
            kept = [row for row in rows if json.loads(row)["step"] <= state.global_step]
            write_text(self._path, "".join(f"{row}\n" for row in kept))

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **_):
        if state.is_world_process_zero and logs:
            append_line(self._path, json.dumps({"step": state.global_step, **logs}))


class _Stop(transformers.TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a request to store the step and stop; a second acts as usual."""

    def __init__(self):
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        del frame
        self._requested = True
        signal.signal(number, self._previous[number])
        print("stopping after this step; once more to stop at once", flush=True)

    def on_step_end(self, args, state, control, **_):
        if self._requested_anywhere(args.device):
            control.should_save = control.should_training_stop = True

    def _requested_anywhere(self, device) -> bool:
        """All processes stop after the same step."""
        if not torch.distributed.is_initialized():
            return self._requested
        requested = torch.tensor(float(self._requested), device=device)
        torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
        return bool(requested)
