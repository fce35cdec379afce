"""Where a training run stands: in one file that is replaced whole or not at all, beside its log.

`state.safetensors` holds the parameters, AdamW's memory, the random generators and, as JSON in its
header, the step and what the run is: no pickle. `training.jsonl` has a line a step. Whenever the
process is killed, the log reaches at least as far as the state; the lines beyond it are cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Qwen2Config
from .disk import replacing, write_whole

STATE, LOG = "state.safetensors", "training.jsonl"


def identity(model: nn.Module, batches: Any, settings: Any) -> dict[str, dict[str, Any]]:
    """What makes a run this run: model, configuration, shapes, settings and first batch.

    Raises:
        ValueError: fewer batches than the settings need, or a batch without input_ids.
    """
    needed = settings.steps * settings.accumulation
    try:
        first, _ = batches[0], batches[needed - 1]
    except IndexError as error:
        raise ValueError(
            f"{settings.steps} steps of {settings.accumulation} batches need {needed} batches, and "
            "there are fewer: take fewer steps, or packing.Shuffled, which never ends"
        ) from error
    if "input_ids" not in first:
        raise ValueError(f"a batch must have input_ids, not only {sorted(first)}")
    digest = hashlib.sha256()
    for name in sorted(first):
        digest.update(f"{name} {list(first[name].shape)}".encode())
        digest.update(first[name].cpu().numpy().tobytes())
    config = getattr(model, "config", None)
    parts = {
        "model": {"class": type(model).__name__},
        "config": config.to_dict() if isinstance(config, Qwen2Config) else {},
        "parameters": {
            name: f"{list(p.shape)}{'' if p.requires_grad else ' frozen'}"
            for name, p in model.named_parameters()
        },
        "settings": asdict(settings),
        "data": {"sha256 of batch 0": digest.hexdigest()},
    }
    return json.loads(json.dumps(parts))  # as it will be read back: keys are strings


class Run:
    """The state of a run: begun, or read from its folder.

    Args:
        folder: None = keep the log in memory and nothing else.
        model, optimiser: what the state is of; filled in place if there is a state.
        about: from `identity`; the state in the folder must be of the same.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        about: dict[str, dict[str, Any]],
    ):
        self.folder = None if folder is None else Path(folder)
        self.model, self.optimiser, self.about = model, optimiser, about
        self.step, self.saved, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.log: list[dict[str, Any]] = []
        if self.folder is None:
            return
        with replacing(self.folder):
            pass  # can it be written? Better known now than after the first hour
        if (self.folder / STATE).exists():
            self._restore()
        elif (self.folder / LOG).exists():
            raise FileExistsError(
                f"{self.folder} holds {LOG} of an earlier run, but not its {STATE}: "
                "remove the log, or choose another folder"
            )
        else:
            self.save()  # so there is no log without a state, however early the kill

    def advance(self, step: int, tokens: int, seconds: float) -> None:
        """A step has been made."""
        self.step, self.tokens, self.seconds = step, self.tokens + tokens, self.seconds + seconds

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
        tensors = {f"model.{name}": t.detach() for name, t in self._numbers().items()}
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

    def whereabouts(self) -> str:
        """Where the last state is, in a sentence."""
        if self.folder is None:
            return "Nothing was saved, as no folder was given."
        return f"The state after step {self.saved} is in {self.folder / STATE}."

    def _numbers(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _restore(self) -> None:
        header, tensors = _read(self.folder / STATE)
        _compare(self.folder / STATE, json.loads(header["about"]), self.about)
        with torch.no_grad():
            for name, t in self._numbers().items():
                t.copy_(tensors[f"model.{name}"])
        memory: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith("adamw."):
                _, i, key = name.split(".")
                memory.setdefault(int(i), {})[key] = t
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": memory, "param_groups": groups})
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        for name, value in json.loads(header["at"]).items():
            setattr(self, name, value)
        self.saved = self.step

        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                break  # the kill came in the middle of this line
            if entry["step"] > self.step:
                break
            self.log.append(entry)
        write_whole(path, "".join(json.dumps(entry) + "\n" for entry in self.log).encode())


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        header, reason = {}, f" ({error})"
    else:
        reason = ""
    if not {"about", "at"} <= set(header):
        raise ValueError(
            f"{path} is no sound training state{reason}: put a copy in its place, or remove it and "
            f"{LOG} to begin anew"
        )
    return header, tensors


def _compare(path: Path, saved: dict[str, dict], now: dict[str, dict]) -> None:
    for part in now:
        before = saved.get(part, {})
        for name in {**before, **now[part]}:
            old, new = before.get(name), now[part].get(name)
            if old != new:
                raise ValueError(
                    f"{path} is the state of another run: {name} ({part}) was {old!r}, now it is "
                    f"{new!r}. Go back to that, or choose another folder"
                )
