"""Where a training run stands: in one file that is replaced whole or not at all, beside its log.

`state.safetensors` holds the parameters, AdamW's memory, the random generators and, as JSON in its
header, the step and what the run is: no pickle. `training.jsonl` has a line for each logged step.
Whenever the process is killed, the log reaches at least as far as the state; the lines beyond it
are cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Qwen2Config
from .disk import locked, replacing

STATE, LOG = "state.safetensors", "training.jsonl"


def identity(model: nn.Module, batches: Any, settings: Any) -> dict[str, dict[str, Any]]:
    """What makes a run this run. ValueError: too few batches for it, or no input_ids in them."""
    needed = settings.steps * settings.accumulation
    try:
        first, _ = batches[0], batches[needed - 1]
    except LookupError as error:
        wanted = f"{settings.steps} steps of {settings.accumulation} batches need {needed} batches"
        raise ValueError(f"{wanted}, and there are fewer: packing.Shuffled never ends") from error
    if not isinstance(first, Mapping) or "input_ids" not in first:
        has = f"only {sorted(first)}" if isinstance(first, Mapping) else repr(first)[:80]
        raise ValueError(f"each of the batches must have input_ids, not {has}")
    data = b""
    for name, t in sorted(first.items()):
        data += f"{name} {list(t.shape)}".encode() + t.cpu().numpy().tobytes()
    config, parameters = getattr(model, "config", None), {}
    for name, p in model.named_parameters():
        parameters[name] = f"{list(p.shape)}{'' if p.requires_grad else ' frozen'}"
    parts = {
        "model": {"class": type(model).__name__},
        "config": config.to_dict() if isinstance(config, Qwen2Config) else {},
        "parameters": parameters,
        "settings": asdict(settings),
        "data": {"sha256 of batch 0": hashlib.sha256(data).hexdigest()},
    }
    return json.loads(json.dumps(parts, default=float))  # as it will be read back: keys are strings


class Run:
    """The state of a run: begun, or read from its folder; None = keep nothing but a log in memory.

    A state that is there fills model and optimiser in place. It must be of the same run by `about`,
    which is from `identity`. `with run.hold:` a second run is refused the folder.
    """

    def __init__(
        self, folder: str | Path | None, model: nn.Module, optimiser: torch.optim.AdamW, about: dict
    ):
        self.folder = None if folder is None else Path(folder)
        self.optimiser, self.about = optimiser, about
        self.numbers = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.step, self.saved, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.log: list[dict[str, Any]] = []
        self.hold = ExitStack()  # on the log
        if self.folder is None:
            return
        with replacing(self.folder):
            pass  # can it be written? Better known now than after the first hour
        log = self.folder / LOG
        log.touch()
        with ExitStack() as hold:
            try:
                hold.enter_context(locked(log, wait=0))
            except BlockingIOError as error:
                other = f"another training goes on in {self.folder}: wait, or choose another folder"
                raise BlockingIOError(error.errno, other) from None
            if (self.folder / STATE).exists():
                self._restore()
            elif log.stat().st_size:
                lone = f"{self.folder} holds {LOG} of an earlier run, but not its {STATE}"
                raise FileExistsError(f"{lone}: remove the log, or choose another folder")
            else:
                self.save()  # so there is no line without a state, however early the kill
            self.hold = hold.pop_all()

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        self.log.append(line | {"tokens": self.tokens, "seconds": round(self.seconds, 3)})
        if self.folder is not None:
            with open(self.folder / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.log[-1]) + "\n")

    def save(self) -> None:
        """Replace the state on disk by the present one."""
        if self.folder is None:
            return
        tensors = {f"model.{name}": t.detach() for name, t in self.numbers.items()}
        for i, memory in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adamw.{i}.{key}": t for key, t in memory.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        at = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        header = {"about": json.dumps(self.about), "at": json.dumps(at)}
        with replacing(self.folder) as draft:
            save_file(tensors, draft / STATE, header)
        self.saved = self.step

    def _restore(self) -> None:
        at, tensors = _read(self.folder / STATE, self.about)
        with torch.no_grad():
            for name, t in self.numbers.items():
                t.copy_(tensors[f"model.{name}"])
        memory: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith("adamw."):
                _, i, key = name.split(".")
                memory.setdefault(int(i), {})[key] = t
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": memory})
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        self.step, self.tokens, self.seconds = at["step"], at["tokens"], at["seconds"]
        self.saved = self.step

        path, size = self.folder / LOG, 0
        with suppress(ValueError):  # the kill came in the middle of a line
            for line in path.read_bytes().splitlines(keepends=True):
                entry = json.loads(line)
                if entry["step"] > self.step:
                    break
                self.log.append(entry)
                size += len(line)
        os.truncate(path, size)


def _read(path: Path, about: dict[str, dict]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Where the run stood, and its tensors, if the file is sound and of the same run."""
    header, reason = {}, "it is another file"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            header = file.metadata() or {}
    except SafetensorError as error:
        reason = error
    if not {"about", "at"} <= header.keys():
        fix = f"put a copy in its place, or remove it and {LOG} to begin anew"
        raise ValueError(f"{path} is no sound training state ({reason}): {fix}")
    saved = json.loads(header["about"])
    for part, now in about.items():
        old = saved.get(part, {})
        for name in {**old, **now}:
            if old.get(name) != now.get(name):
                change = f"{name} ({part}) was {old.get(name)!r}, now it is {now.get(name)!r}"
                other = f"{path} is the state of another run: {change}"
                raise ValueError(f"{other}. Go back to that, or choose another folder")
    return json.loads(header["at"]), tensors
