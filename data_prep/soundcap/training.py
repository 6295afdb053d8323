"""Fine-tune a vision-language model on the captions of a model that also hears (SoundCap, second step).

The model sees only the silent frames and learns to give the same captions. LoRA adapters are trained on its
language model; its vision tower is frozen.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.rejection import Rejection
from data_prep.soundcap.clip_view import ClipView, ViewConfig, load_view
from data_prep.soundcap.examples import Example, split_examples
from data_prep.soundcap.local import NEEDS_PYTORCH, LocalModel
from data_prep.soundcap.prompts import Prompt
from data_prep.worker_pool import Worker
from flowley_jax.common.files import append_line, write_text
from flowley_jax.common.json_files import read_json_object
from flowley_jax.common.jsonl import append_json, read_jsonl
from flowley_jax.common.locks import lock_folder
from flowley_jax.data.clip_table import TableClip
from flowley_jax.errors import FlowleyError

try:
    import peft  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    import transformers
except ImportError as error:
    raise FlowleyError(NEEDS_PYTORCH) from error

ADAPTER_FOLDER = "adapter"
PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.jsonl"
_UNREADABLE_FILE = "unreadable.tsv"
_TRAINER_STATE = "trainer_state.json"
# The label that PyTorch's cross-entropy ignores.
_IGNORED_LABEL = -100
# Attention and MLP projections of the language model.
_LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# Settings that do not change the result, so a run may resume with others.
_NOT_IN_PROVENANCE = ("workers", "time_limit", "save_every", "checkpointing", "on_cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of a fine-tuning run.

    Attributes:
      rank: rank of the LoRA adapters.
      alpha: scale of the LoRA adapters, which are multiplied by alpha / rank.
      epochs: passes over the captions; the paper's SoundCap takes one.
      batch_size: clips per device and batch.
      accumulation: batches per optimiser step.
      learning_rate: peak learning rate, after a warm-up over 3 % of the steps; it then decays to zero along a
        cosine.
      save_every: steps between checkpoints.
      workers: processes that read clips; 0 reads in the training process.
      time_limit: time limit for reading one clip, in seconds.
      checkpointing: whether to recompute activations in the backward pass to save memory.
      on_cpu: whether to train on the CPU; otherwise every process uses one GPU, if there is any.
      seed: seed of the adapters and of the order of clips.
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
    clips: Sequence[TableClip],
    captions: Mapping[str, str],
    model: LocalModel,
    prompt: Prompt,
    view: ViewConfig,
    config: FinetuneConfig,
    out: Path,
) -> Path | None:
    """Train LoRA adapters on the captions of clips, or resume such a training run.

    Only clips of the train split are trained on. The valid split is held out; if it has no captions, 5 % of
    the train split are, at most 500 clips. The loss of the held-out clips is measured at the end. A clip that
    cannot be read does not contribute to the loss and is listed in `out/unreadable.tsv`.

    Args:
      clips: the clips of a table.
      captions: target captions by clip id; clips without one are not used.
      model: the model to adapt, on the host.
      prompt: the question that the captions answer.
      view: the part of each clip that the model gets.
      config: settings of the training run.
      out: folder for checkpoints, `metrics.jsonl` and the adapter.

    Returns:
      The folder of the adapter, or None if Ctrl-C or SIGTERM stopped the run after a checkpoint.

    Raises:
      FlowleyError: no clip has a caption to train on, `out` holds a training run with different captions or
        settings, or another process trains there.
    """
    train, valid = split_examples(clips, captions)
    if not train:
        raise FlowleyError(
            f"{out}: none of {len(clips)} clips has a caption to train on; check that the ids are the same, "
            "and that clips of the split train have captions"
        )
    # The processes of one run share the folder.
    is_first = os.environ.get("RANK", "0") == "0"
    with lock_folder(out) if is_first else contextlib.nullcontext():
        return _finetune(train, valid, model, prompt, view, config, out)


def _finetune(
    train: Sequence[Example],
    valid: Sequence[Example],
    model: LocalModel,
    prompt: Prompt,
    view: ViewConfig,
    config: FinetuneConfig,
    out: Path,
) -> Path | None:
    adapter = out / ADAPTER_FOLDER
    provenance = _provenance(train, model, prompt, view, config)
    _claim_folder(out, provenance)
    if (adapter / PROVENANCE_FILE).is_file():
        print(f"the adapter already exists: {adapter}")
        return adapter
    print(f"training on {len(train)} clips, {len(valid)} held out; the adapter will be written to {adapter}")
    transformers.set_seed(config.seed)
    tuned = _with_new_adapters(model, config)
    train_set, valid_set = (_Examples(part, view, config.time_limit, out) for part in (train, valid))
    stop = _StopSignal()
    trainer = _Trainer(
        model=tuned,
        args=_trainer_arguments(out, config),
        train_dataset=train_set,
        eval_dataset=valid_set if valid else None,
        data_collator=functools.partial(_collate, model=model, prompt=prompt.text, view=view),
        callbacks=[_Metrics(out / METRICS_FILE), stop],
    )
    checkpoint = _last_checkpoint(out)
    if checkpoint:
        print(f"resuming from {checkpoint}")
    try:
        with stop:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < trainer.state.max_steps:
            print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}")
            return None
        if valid:
            trainer.evaluate()
    finally:
        train_set.close()
        valid_set.close()
    if trainer.is_world_process_zero():
        tuned.save_pretrained(str(adapter))
        write_text(adapter / PROVENANCE_FILE, json.dumps(provenance, indent=2) + "\n")
    return adapter


def _provenance(
    train: Sequence[Example], model: LocalModel, prompt: Prompt, view: ViewConfig, config: FinetuneConfig
) -> dict[str, Any]:
    lines = "".join(f"{clip.id}\t{caption}\n" for clip, caption in train)
    settings = dataclasses.asdict(config)
    for name in _NOT_IN_PROVENANCE:
        del settings[name]
    return {
        **model.identity,
        "prompt": prompt.name,
        "prompt_sha256": prompt.sha256,
        "viewing": dataclasses.asdict(view),
        "config": settings,
        "clips": len(train),
        "captions_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def _claim_folder(out: Path, provenance: dict[str, Any]) -> None:
    """Mark the folder as the one of this training run.

    Raises:
      FlowleyError: the folder holds a training run with a different provenance.
    """
    path = out / PROVENANCE_FILE
    if path.is_file() and read_json_object(path) != provenance:
        raise FlowleyError(
            f"{out}: holds a training run with different captions or settings; choose another folder"
        )
    write_text(path, json.dumps(provenance, indent=2) + "\n")


def _last_checkpoint(out: Path) -> Path | None:
    """Return the newest whole checkpoint. The trainer writes its state last; a kill may cut it."""
    steps = [path.name.removeprefix("checkpoint-") for path in out.glob("checkpoint-*")]
    for step in sorted((step for step in steps if step.isdecimal()), key=int, reverse=True):
        folder = out / f"checkpoint-{step}"
        with contextlib.suppress(FlowleyError):
            read_json_object(folder / _TRAINER_STATE)
            return folder
    return None


def _with_new_adapters(model: LocalModel, config: FinetuneConfig) -> Any:
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=_LORA_TARGETS, task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model.model.train(), lora)
    if config.checkpointing:
        tuned.enable_input_require_grads()
    return tuned


def _trainer_arguments(out: Path, config: FinetuneConfig) -> transformers.TrainingArguments:
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


class _Examples(torch.utils.data.Dataset):
    """Clip views with their captions; the view of a clip that cannot be read is None."""

    def __init__(self, examples: Sequence[Example], view: ViewConfig, time_limit: float, out: Path):
        self._examples, self._out = examples, out
        # Its process starts at first use, and so once in each process that reads.
        self._worker = Worker(functools.partial(load_view, view), time_limit)

    def close(self) -> None:
        """Stop the process that reads."""
        self._worker.close()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[ClipView | None, str]:
        clip, caption = self._examples[index]
        view = self._worker(clip.source)
        if isinstance(view, Rejection):
            self._list_unreadable(f"{clip.id}\t{view.reason}\t{view.detail}")
            return None, caption
        return view, caption

    def _list_unreadable(self, line: str) -> None:
        """List an unreadable clip, once for all epochs."""
        path = self._out / _UNREADABLE_FILE
        # A crash may have cut the last line, within a character too.
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        *lines, cut = text.split("\n")
        if line not in lines:
            append_line(path, f"\n{line}" if cut else line)


def _collate(
    items: Sequence[tuple[ClipView | None, str]], *, model: LocalModel, prompt: str, view: ViewConfig
) -> dict[str, Any]:
    """Return a batch whose labels are the tokens of the answers; an unreadable clip has no labels."""
    views = [clip if clip is not None else _blank_view(view) for clip, _ in items]
    batch = model.inputs(views, prompt, [caption for _, caption in items])
    labels = torch.full_like(batch["input_ids"], _IGNORED_LABEL)
    for row, (clip, caption) in enumerate(items):
        if clip is not None:
            # Padding is on the left, so the answer is at the end.
            answer = slice(-model.count_answer_tokens(prompt, caption), None)
            labels[row, answer] = batch["input_ids"][row, answer]
    return {**batch, "labels": labels}


def _blank_view(view: ViewConfig) -> ClipView:
    return ClipView(np.zeros((2, 28, 28, 3), np.uint8), view.fps)


class _Trainer(transformers.Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        """Return the loss, which is 0 with gradient 0 for a batch without labels.

        The mean over no labels would be NaN.
        """
        if (inputs["labels"] != _IGNORED_LABEL).any():
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **options)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = 0.0 * outputs.logits.sum()
        return (loss, outputs) if return_outputs else loss


def _step(row: Mapping[str, Any]) -> float:
    """Return the step of a row of metrics; a row without one is after every step, and so dropped."""
    step = row.get("step")
    return step if isinstance(step, int) else float("inf")


class _Metrics(transformers.TrainerCallback):
    """Writer of the trainer's logs to a JSON Lines file."""

    def __init__(self, path: Path):
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop rows after the checkpoint from which the run resumes: those steps are repeated."""
        if state.is_world_process_zero and self._path.exists():
            rows = [row for row in read_jsonl(self._path) if _step(row) <= state.global_step]
            write_text(self._path, "".join(f"{json.dumps(row)}\n" for row in rows))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs:
            append_json(self._path, {"step": state.global_step, **logs})


class _StopSignal(transformers.TrainerCallback):
    """Callback that turns the first Ctrl-C or SIGTERM into a checkpoint and a stop; a second one aborts.

    `flowley_jax.common.stop_signal.StopSignal` asks JAX about other processes, which would start JAX on the
    GPUs and take their memory from PyTorch.
    """

    def __init__(self):
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        del frame
        self._requested = True
        signal.signal(number, self._previous[number])
        print("stopping after the current step; press Ctrl-C again to abort now", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._is_requested(args.device):
            control.should_save = control.should_training_stop = True

    def _is_requested(self, device: Any) -> bool:
        """Return whether any process got a signal, so that all stop after the same step. Collective."""
        if not torch.distributed.is_initialized():
            return self._requested
        requested = torch.tensor(float(self._requested), device=device)
        torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
        return bool(requested)
