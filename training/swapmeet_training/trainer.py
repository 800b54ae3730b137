"""The transformers Trainer, set up for one QLoRA run: loss, evaluation, padding and reports are ours."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy

from swapmeet_training.dataset import Dataset
from swapmeet_training.errors import Diverged
from swapmeet_training.masking import IGNORED, Sequence
from swapmeet_training.progress import Progress, Report
from swapmeet_training.spec import FineTune

Batch = dict[str, torch.Tensor]


class Arguments(transformers.TrainingArguments):  # type: ignore[misc]  # transformers is untyped
    """Trainer settings of a run on one device, however many the machine has."""

    @property
    def n_gpu(self) -> int:
        """Never more than one: with more, the Trainer would split batches over all GPUs it sees."""
        return min(1, int(super().n_gpu))


def arguments(spec: FineTune, folder: Path, examples: int, device: str, keep: int | None) -> Arguments:
    """The Trainer's settings; `examples` is the size of the training set, `keep` how many checkpoints stay."""
    per_epoch = math.ceil(math.ceil(examples / spec.batch_size) / spec.gradient_accumulation)
    return Arguments(
        output_dir=str(folder),
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps or -1,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule if spec.schedule != "constant" else "constant_with_warmup",
        warmup_steps=spec.warmup_ratio,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        optim=spec.optimizer,
        seed=spec.seed,
        data_seed=spec.seed,
        eval_strategy="steps" if spec.validation else "no",
        eval_steps=spec.eval_every or per_epoch,
        save_strategy="steps",
        save_steps=spec.save_every or per_epoch,
        save_total_limit=keep,
        logging_steps=1,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        disable_tqdm=True,
        report_to=[],
    )


class Trainer(transformers.Trainer):  # type: ignore[misc]
    """Token-mean loss over the trained tokens only, in training and in evaluation alike."""

    def __init__(self, model: Any, args: Arguments, data: Dataset, reporter: "Reporter") -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=data.training,
            eval_dataset=data.held_out or None,
            data_collator=lambda sequences: collate(sequences, data.pad),
            callbacks=[reporter],
        )
        self._reporter = reporter
        # Ours divides by the trained tokens of the whole accumulated batch; the Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        self.remove_callback(transformers.PrinterCallback)

    def compute_loss(self, model: Any, inputs: Batch, *, num_items_in_batch: torch.Tensor, **_: Any) -> torch.Tensor:
        """Mean loss in nats per trained token of the batch, all its accumulated parts together."""
        loss: torch.Tensor = score(model, inputs)[0] / num_items_in_batch
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss and greedy accuracy per trained token of the held-out data."""
        self.model.eval()
        loss = correct = trained = 0.0
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                part_loss, part_correct, part_trained = score(self.model, self._prepare_inputs(batch))
                loss += part_loss.item()
                correct += part_correct.item()
                trained += part_trained
        metrics = {"eval_loss": loss / trained, "eval_token_accuracy": correct / trained}
        self.log(metrics)
        # This clears `should_evaluate`; left set, the Trainer evaluates again at the epoch's end, and the random
        # numbers that takes make a resumed run differ from an uninterrupted one.
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def final_metrics(self) -> dict[str, float]:
        """Loss of the last step, evaluation after it, and speed."""
        logs = self.state.log_history
        evaluated = next((entry["step"] for entry in reversed(logs) if "eval_loss" in entry), None)
        if self.eval_dataset is not None and evaluated != self.state.global_step:
            self.evaluate()
        metrics = {"tokens_per_second": self._reporter.tokens_per_second}
        for entry in logs:
            metrics |= {name: entry[name] for name in ("loss", "eval_loss", "eval_token_accuracy") if name in entry}
        return metrics


def collate(sequences: list[Sequence], pad: int) -> Batch:
    """Sequences padded on the right to the longest: `input_ids`, `attention_mask`, `labels` of (batch, length)."""
    length = max(len(sequence.tokens) for sequence in sequences)

    def padded(rows: list[tuple[int, ...]], filler: int) -> torch.Tensor:
        return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])

    return {
        "input_ids": padded([sequence.tokens for sequence in sequences], pad),
        "attention_mask": padded([(1,) * len(sequence.tokens) for sequence in sequences], 0),
        "labels": padded([sequence.labels for sequence in sequences], IGNORED),
    }


def score(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Summed loss in nats, greedy hits and number of the trained tokens of a batch.

    The output head runs only where some row of the batch has a trained token: with a large vocabulary and
    long prompts it would cost more than the rest of the model together.
    """
    targets = batch["labels"][:, 1:]
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=positions
    ).logits
    targets = targets[:, positions]
    trained = targets != IGNORED
    logits, targets = logits[trained].float(), targets[trained]
    hits = (logits.detach().argmax(dim=-1) == targets).sum()
    return cross_entropy(logits, targets, reduction="sum"), hits, targets.numel()


class Reporter(transformers.TrainerCallback):  # type: ignore[misc]
    """Tells of every step, evaluation and checkpoint, and stops a run whose loss is not a number."""

    def __init__(
        self, name: str, report: Report, checkpointed: Callable[[Path], None], stop: Callable[[], bool]
    ) -> None:
        self._name = name
        self._report = report
        self._checkpointed = checkpointed
        self._stop = stop
        self._loss = math.nan
        self.tokens_per_second = 0.0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._first_step = state.global_step
        self._first_tokens = state.num_input_tokens_seen

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """A step's loss, an evaluation's metrics, or the Trainer's closing summary, which is not told."""
        if "loss" in logs:
            self._loss = logs["loss"]
            if not math.isfinite(self._loss):
                raise Diverged(
                    f"{self._name} diverged: its loss is {self._loss} at step {state.global_step}. Lower learning_rate."
                )
        elif "eval_loss" not in logs:
            return
        evaluation = {name: value for name, value in logs.items() if name.startswith("eval_")}
        elapsed = time.monotonic() - self._began
        steps = state.global_step - self._first_step
        self.tokens_per_second = int(state.num_input_tokens_seen - self._first_tokens) / elapsed
        self._report(
            Progress(
                name=self._name,
                step=state.global_step,
                total_steps=state.max_steps,
                loss=self._loss,
                tokens_per_second=self.tokens_per_second,
                seconds_left=elapsed / max(steps, 1) * (state.max_steps - state.global_step),
                evaluation=evaluation,
                trained_tokens=int(state.num_input_tokens_seen),
            )
        )

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask whether to stop here, with a checkpoint."""
        if state.global_step < state.max_steps and self._stop():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """A checkpoint is whole."""
        self._checkpointed(Path(args.output_dir) / f"checkpoint-{state.global_step}")
