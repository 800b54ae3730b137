"""The loop: optimizer steps, evaluations, checkpoints, and what is told of them."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from swapmeet_training.errors import Diverged
from swapmeet_training.loop.checkpoint import Checkpoint, Save, Standing, rotate
from swapmeet_training.loop.fitting import Fitting, random_state, set_random_state
from swapmeet_training.loop.history import Losses, Metrics
from swapmeet_training.loop.losses import Objective
from swapmeet_training.loop.optimization import Optimizer, learning_rate
from swapmeet_training.loop.order import Order
from swapmeet_training.loop.tally import Tally
from swapmeet_training.lora import adapter, principal
from swapmeet_training.progress import Progress, Report
from swapmeet_training.spec import FineTune


class Trainer:
    """One run of a model over its data, at any point of which it can stop and be taken up again.

    Args:
        spec: the run's settings.
        model: as `attach_lora` made it.
        objective: the loss.
        training: rows of examples, or pairs, to train on.
        held_out: the same to evaluate on; may be empty.
        folder: for checkpoints and history.
        report: told of every step and evaluation.
        seal: adds the provenance to a checkpoint's folder.
        saved: told of every checkpoint.
        keep: how many checkpoints stay; None for all.
    """

    def __init__(
        self,
        spec: FineTune,
        model: Any,
        objective: Objective[Any],
        training: list[Any],
        held_out: list[Any],
        folder: Path,
        *,
        report: Report,
        seal: Save,
        saved: Callable[[Path], object],
        keep: int | None,
    ) -> None:
        self._spec, self._model, self._objective, self._folder = spec, model, objective, folder
        self._report, self._seal, self._saved, self._keep = report, seal, saved, keep
        self._order = Order(training, spec.batch_size * spec.gradient_accumulation, spec.seed)
        self._held_out = sorted(held_out, key=objective.length)
        per_epoch = self._order.steps_per_epoch
        self.steps = spec.max_steps or math.ceil(spec.epochs * per_epoch)
        self._eval_every, self._save_every = spec.eval_every or per_epoch, spec.save_every or per_epoch
        self._optimizer = Optimizer(spec, model)
        self._take(Standing(micro_batch=spec.batch_size))
        self.best: adapter.Weights | None = None
        lines = (example.line for example in objective.examples(training))
        self.losses = Losses(lines, math.ceil(self.steps / per_epoch))
        self._metrics = Metrics(folder)
        self._told = 0
        torch.manual_seed(spec.seed)

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or too many evaluations brought nothing better."""
        patience = self._spec.early_stopping
        return self.standing.step >= self.steps or (patience is not None and self.standing.stale >= patience)

    def train(self, stop: Callable[[], bool]) -> Path | None:
        """Make the steps that are left; a checkpoint's folder if `stop` said so before they were made."""
        self._began, self._first = time.monotonic(), (self.standing.step, self.standing.tokens)
        while not self.finished:
            if stop():
                return self._save()
            tally = self._step()
            step = self.standing.step
            evaluated = bool(self._held_out) and (step % self._eval_every == 0 or step == self.steps)
            evaluation = self._evaluate(tally) if evaluated else {}
            self._metrics.add(step, tally.loss, tally.metrics, evaluation)
            if step % self._save_every == 0 or self.finished:
                self._save()
        self.losses.write(self._folder)
        return None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        tensors = checkpoint.tensors
        self._take(checkpoint.standing)
        adapter.set_weights(self._model, tensors["adapter"])
        if principal.used(self._model):
            adapter.set_weights(self._model, tensors["initial"], principal.INITIAL)
        self.best = tensors.get("best")
        if self._spec.keep_best and self.standing.best_step == self.standing.step:
            self.best = tensors["adapter"]
        self._optimizer.restore(tensors["optimizer"])
        self.losses.restore({name: tensor.numpy() for name, tensor in tensors["losses"].items()})
        self._metrics = Metrics(self._folder, checkpoint.metrics)
        self._told = len(self.standing.notes)
        set_random_state(self._model.device, tensors["random"])

    def final_weights(self) -> adapter.Weights:
        """The adapter to publish: the best evaluated one where that is wanted, or else the last."""
        return adapter.weights(self._model) if self.best is None else self.best

    def final_metrics(self) -> dict[str, float]:
        """Loss of the last step, speed, and the evaluation of the adapter to publish."""
        standing = self.standing
        metrics = {"loss": standing.loss, "tokens_per_second": self.tokens_per_second}
        if self.best is None:
            return metrics | standing.evaluation
        return metrics | standing.best | {"best_step": float(standing.best_step or 0)}

    def _take(self, standing: Standing) -> None:
        self.standing = standing
        self._fitting = Fitting(self._spec.name, standing, self._model.device, self._optimizer.forget)

    def _step(self) -> Tally:
        """One optimizer step over its units, however many micro-batches they take."""
        standing = self.standing
        units = sorted(self._order.at(standing.step), key=self._objective.length, reverse=True)
        self._model.train()
        tally = self._fitting.do(lambda size: self._gradients(units, size))
        rate = learning_rate(self._spec, standing.step, self.steps)
        norm = self._optimizer.clip()
        self._require_finite(tally.loss, norm)
        self._optimizer.step(rate)
        epoch = self._order.epoch(standing.step)
        for example, loss in tally.examples():
            self.losses.add(example.line, epoch, loss, example.tokens)
        standing.step += 1
        standing.loss = tally.loss
        standing.tokens += sum(map(self._objective.length, units))
        tally.metrics |= {
            "epoch": standing.step / self._order.steps_per_epoch,
            "learning_rate": rate,
            "gradient_norm": norm,
        }
        self._tell(tally)
        return tally

    def _gradients(self, units: list[Any], size: int) -> Tally:
        """Accumulate the gradient of the mean over all units, `size` at a time."""
        tally = Tally(self._objective.examples(units), self._objective.count(units))
        for start in range(0, len(units), size):
            score = self._objective.score(self._model, units[start : start + size])
            (score.loss / tally.count).backward()  # type: ignore[no-untyped-call]
            tally.add(score)
        return tally.close()

    def _evaluate(self, last: Tally) -> dict[str, float]:
        """Mean loss and metrics of the held-out data; keeps the adapter if none was better."""
        self._model.eval()
        tally = self._fitting.do(self._scores)
        standing = self.standing
        evaluation = {f"eval_{name}": value for name, value in {"loss": tally.loss, **tally.metrics}.items()}
        standing.evaluation = evaluation
        if standing.best_step is None or tally.loss < standing.best["eval_loss"]:
            standing.best_step, standing.best, standing.stale = standing.step, evaluation, 0
            self.best = adapter.weights(self._model) if self._spec.keep_best else None
        else:
            standing.stale += 1
        self._tell(last, evaluation)
        return evaluation

    def _scores(self, size: int) -> Tally:
        tally = Tally(self._objective.examples(self._held_out), self._objective.count(self._held_out))
        with torch.no_grad():
            for start in range(0, len(self._held_out), size):
                tally.add(self._objective.score(self._model, self._held_out[start : start + size]))
        return tally.close()

    def _require_finite(self, loss: float, norm: float) -> None:
        for what, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise Diverged(
                    f"{self._spec.name} diverged: its {what} is {value} at step {self.standing.step + 1}. "
                    "Lower learning_rate."
                )

    def _save(self) -> Path:
        standing, model = self.standing, self._model
        weights = adapter.weights(model)
        tensors = {
            "optimizer": self._optimizer.state(),
            "random": random_state(self._model.device),
            "losses": {name: torch.from_numpy(array) for name, array in self.losses.arrays().items()},
        }
        if self.best is not None and standing.best_step != standing.step:
            tensors["best"] = self.best
        if principal.used(model):
            tensors |= {"adapter": weights, "initial": adapter.weights(model, principal.INITIAL)}
        folder = self._folder / f"checkpoint-{standing.step}"
        checkpoint = Checkpoint(standing, self._metrics.text(), tensors)
        checkpoint.write(folder, lambda partial: adapter.save(model, self._spec, partial, weights), self._seal)
        self.losses.write(self._folder)
        self._saved(folder)
        rotate(self._folder, self._keep)
        return folder

    @property
    def tokens_per_second(self) -> float:
        """Of this process, since its first step."""
        return (self.standing.tokens - self._first[1]) / max(time.monotonic() - self._began, 1e-9)

    def _tell(self, tally: Tally, evaluation: dict[str, float] | None = None) -> None:
        standing = self.standing
        elapsed, made = time.monotonic() - self._began, standing.step - self._first[0]
        notes, self._told = standing.notes[self._told :], len(standing.notes)
        self._report(
            Progress(
                name=self._spec.name,
                step=standing.step,
                total_steps=self.steps,
                loss=tally.loss,
                tokens_per_second=self.tokens_per_second,
                seconds_left=elapsed / made * (self.steps - standing.step),
                evaluation=evaluation or {},
                metrics=dict(tally.metrics),
                trained_tokens=standing.tokens,
                note=" ".join(notes),
            )
        )
