"""One plain training loop: for a lesson's small model, for a head, for the shipped checkpoint.

It asks the data for `batches[i]`, which must depend on i alone. So the number of steps done says
where in the data a run stands, and a run that was killed goes on from its last state as if nothing
had happened. `packing.py` makes such data, `training_state.py` keeps the state.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_type_hints, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from .checks import Range, check_calls, check_fit, check_json, check_numbers, one_of
from .files.training_state import Run, identity
from .model import Qwen2ForCausalLM

Batch = Mapping[str, Tensor]  # used as model(**batch)

Count, Share = Annotated[int, Range(1, whole=True)], Annotated[float, Range(0, 1)]


@runtime_checkable
class Batches(Protocol):
    """Answers batch i to [i]: a list, a `packing.Shuffled`, whatever else does."""

    def __getitem__(self, i: int) -> Batch: ...


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. ValueError: a value out of range.

    Args:
        learning_rate: its peak, after `warmup_steps`; half a cosine leads to `floor` times that.
        weight_decay: of matrices, embeddings among them; biases and norms do not decay.
        beta2: what AdamW keeps of its mean squared gradient in a step; of its mean gradient, 0.9.
        max_grad_norm: a longer gradient is scaled down to this length; inf = never.
        accumulation: how many batches make one step.
        precision: of products: "fp32" is exact, "bf16" faster; "auto" = bf16 on a GPU only.
        seed: of dropout.
        log_every, evaluate_every, save_every: in steps; the last step does all three.
    """

    steps: Count
    learning_rate: Share = 1e-3
    floor: Share = 0.1
    warmup_steps: int = 0
    weight_decay: Annotated[float, Range(0, 10)] = 0.1
    beta2: Annotated[float, Range(0, 0.99999)] = 0.95
    max_grad_norm: Annotated[float, Range(1e-6)] = 1.0
    accumulation: Count = 1
    precision: str = "auto"
    seed: Annotated[int, Range(0, 2**63, whole=True)] = 0
    log_every: Count = 1
    evaluate_every: Count = 100
    save_every: Count = 100

    def __post_init__(self):
        one_of("precision", self.precision, ("auto", "fp32", "bf16"))
        check_json(vars(self), get_type_hints(type(self)))
        check_fit(vars(self), get_type_hints(type(self), include_extras=True))
        check_numbers(vars(self), {"warmup_steps": Range(0, self.steps, whole=True)})


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """The learning rate of a step, counted from 1: linear warm-up, then a cosine to the floor."""
    s = settings
    check_numbers({"step": step}, {"step": Range(1, s.steps, whole=True)})
    if step <= s.warmup_steps:
        return s.learning_rate * step / s.warmup_steps
    done = (step - s.warmup_steps) / (s.steps - s.warmup_steps)  # 0 … 1
    return s.learning_rate * (s.floor + (1 - s.floor) * (1 + math.cos(math.pi * done)) / 2)


def make_optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the parameters that are not frozen; only matrices decay. ValueError: nothing to
    train, or parameters of 16 bits.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("every parameter is frozen (requires_grad=False): nothing to train")
    for name, p in trained.items():
        if p.dtype in (torch.bfloat16, torch.float16):
            lost = f"{name} is {p.dtype}, where a small change is lost to rounding"
            raise ValueError(f'{lost}: train model.float(), with precision="bf16" for speed')
    matrices = [p for p in trained.values() if p.ndim >= 2]
    vectors = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}]
    groups += [{"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, settings.learning_rate, (0.9, settings.beta2), fused=True)


def counted_labels(model: nn.Module, batch: Batch) -> int:
    """Over how many labels is the loss of this batch a mean?"""
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        return len(next(iter(batch.values()), ()))  # spans, or numbers: every row counts alike
    if isinstance(model, Qwen2ForCausalLM):
        labels = labels[:, 1:]  # nothing predicts a row's first token
    return int(labels.ne(-100).sum())


def weighted_losses(
    model: nn.Module, batches: Iterable[Batch], precision: str = "auto"
) -> Iterator[Tensor]:
    """One loss a batch, scaled so that their sum is the mean over all labels of all batches.

    A batch without labels is left out, as its loss is 0/0. ValueError: all are, or the model
    answers no loss.
    """
    one_of("precision", precision, ("auto", "fp32", "bf16"))
    batches = list(batches)
    device = next(model.parameters()).device
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    counts = [counted_labels(model, batch) for batch in batches]
    if not sum(counts):
        raise ValueError(f"none of these {len(batches)} batches has a label other than -100")
    for batch, count in zip(batches, counts, strict=True):
        if count:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
            if loss is None:
                raise ValueError(f"the model answers no loss for a batch of {sorted(batch)}")
            yield loss * (count / sum(counts))


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], precision: str = "auto") -> float:
    """The mean loss over all counted labels of some batches, without dropout."""
    was_training = model.training
    model.eval()
    loss = float(sum(weighted_losses(model, batches, precision)))
    model.train(was_training)
    return loss


def train(
    model: nn.Module,
    batches: Batches,
    settings: TrainingSettings,
    *,
    held_out: Iterable[Batch] = (),
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train a model in place, or go on with a run that was cut short. It ends in eval mode.

    Args:
        model: fp32, on the device it shall be trained on; answers `model(**batch).loss`.
        batches: step s, counted from 1, takes items (s - 1) * accumulation … s * accumulation - 1.
        held_out: batches to judge the model by every so often.
        folder: where the log and the state are kept. The state of this same run is gone on from,
            to the same bits on the same machine with as many threads. None = keep nothing.

    Returns:
        The log, which is also in `folder/training.jsonl`. A line has step; loss, before that step;
        lr; grad_norm, before clipping; tokens and seconds so far, padding and evaluation included;
        and held_out_loss, after that step, where it was taken.

    Raises:
        ValueError: too few batches, 16-bit parameters, a broken state, or one of another run.
        OSError: the folder cannot be written, or holds a log without its state.
        RuntimeError: loss or gradient is no finite number. Parameters are as before that step.
    """
    s, held_out = settings, list(held_out)
    optimiser = make_optimiser(model, s)
    torch.manual_seed(s.seed)
    run = Run(folder, model, optimiser, identity(model, batches, s))
    model.train()
    model.zero_grad()  # an earlier run may have been interrupted between gradient and step
    said = "loss {task.fields[loss]} · {task.fields[rate]} tokens/s · time left"
    columns = (MofNCompleteColumn(), BarColumn(), said, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar, run.hold:
        bar.add_task("", total=s.steps, completed=run.step, loss="…", rate="…")
        for step in range(run.step + 1, s.steps + 1):
            start, first = time.perf_counter(), (step - 1) * s.accumulation
            group = [batches[i] for i in range(first, first + s.accumulation)]
            loss = 0.0
            for part in weighted_losses(model, group, s.precision):
                part.backward()
                loss += part.detach()
            loss, norm = float(loss), float(clip_grad_norm_(model.parameters(), s.max_grad_norm))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                found = f"step {step}: the loss is {loss} and the gradient's norm {norm}"
                fix = f"see batches {first} to {first + s.accumulation - 1}, or lower learning_rate"
                kept = f"state after step {run.saved} is in {folder or 'no folder: none was given'}"
                raise RuntimeError(f"{found}: {fix}, now {s.learning_rate}. The {kept}.")
            rate = float(learning_rate(step, s))
            for parameters in optimiser.param_groups:
                parameters["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()

            last = step == s.steps
            line = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm}
            if held_out and (last or step % s.evaluate_every == 0):
                line["held_out_loss"] = evaluate(model, held_out, s.precision)
            run.step, run.tokens = step, run.tokens + sum(b["input_ids"].numel() for b in group)
            run.seconds += time.perf_counter() - start
            if last or step % s.log_every == 0 or "held_out_loss" in line:
                run.write(line)
            if last or step % s.save_every == 0:
                run.save()  # after its line: a state is never ahead of the log
            bar.update(0, advance=1, loss=f"{loss:.4f}", rate=f"{run.tokens / run.seconds:,.0f}")
    model.eval()
    return run.log


check_calls("training")  # here, so that `import qwen2_edu` does not wait for it
