"""Weights from disk into a model: safetensors, nothing else. `saving.py` is the way back.

A safetensors file is 8 bytes that say how long the header is, a JSON header {name: dtype, shape,
offsets}, and the raw numbers. It can be mapped into memory, so that a number costs nothing until
it is used; and nothing in it can run. A pickle (`pytorch_model.bin`) can run anything: refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .disk import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Every checkpoint has the same trunk, alone or under "model." ("transformer." for span heads).
TRUNK = re.compile(r"(?:model\.|transformer\.)?((?:embed_tokens|layers|norm)\..+)")
HEADS = ("lm_head.", "score.", "qa_outputs.")  # a checkpoint may have a head the model has not
ROTARY = ".rotary_emb.inv_freq"  # in very old checkpoints; it follows from the config


@dataclass
class LoadReport:
    """What a load found: names of parameters, as the model spells them."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)  # with the file and the reason
    fresh: list[str] = field(default_factory=list)  # heads the checkpoint lacks, newly initialised
    unused: list[str] = field(default_factory=list)  # heads of the checkpoint the model has not

    def faults(self) -> str:
        """What makes the load an error, in a sentence; empty if nothing does."""
        kinds = ("missing", "unexpected", "mismatched")
        return ". ".join(
            f"{len(names)} {kind}: {'; '.join(names[:5])}{' …' if len(names) > 5 else ''}"
            for kind in kinds
            if (names := getattr(self, kind))
        )


def find_weights(folder: str | os.PathLike[str]) -> dict[Path, list[str] | None]:
    """Which files hold the weights of a checkpoint?

    Returns:
        {file: the tensors that the index puts there, or None where there is no index}.

    Raises:
        FileNotFoundError: no safetensors file; a shard missing.
        ValueError: a broken index, or one that points outside the folder.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        return {_inside(folder, SINGLE): None}
    if not (folder / INDEX).is_file():
        present = [path.name for path in folder.iterdir()]
        raise FileNotFoundError(no_safetensors(str(folder), present))
    shards: dict[Path, list[str]] = {}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX} is not an index: it needs weight_map, {{tensor: file}}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", shard):
            raise ValueError(
                f"{folder / INDEX} puts tensor {tensor} into {shard!r}: a shard must be a plain "
                "file name that ends in .safetensors"
            )
        shards.setdefault(folder / shard, []).append(tensor)
    for path, tensors in shards.items():
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, which by {INDEX} holds {tensors[0]}: download it again"
            )
        _inside(folder, path.name)
    return shards


def no_safetensors(where: str, files: Iterable[str]) -> str:
    """Why a place without safetensors cannot be loaded; `files` is what it holds instead."""
    pickles = sorted(f for f in files if f.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not pickles:
        return f"{where} has neither model.safetensors nor model.safetensors.index.json"
    return (
        f"{where} has no safetensors, only {pickles[0]}: that is a pickle, which can run any code "
        "when it is opened, so it is refused; look for a copy of the model in safetensors"
    )


def _inside(folder: Path, name: str) -> Path:
    """Refuse a link that leaves the folder, unless it leads into the hub cache's own blobs."""
    home, target = folder.resolve(), (folder / name).resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if target.parent not in (home, blobs):
        raise ValueError(f"{folder / name} is a link that leaves its folder, to {target}: refused")
    return folder / name


def open_safetensors(path: str | os.PathLike[str], device: str = "cpu"):
    """A safetensors file mapped into memory, to be used in a `with` statement.

    Raises:
        ValueError: truncated, overlapping or otherwise malformed; names the file.
    """
    try:
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        reason = f"{path} is not a sound safetensors file ({error}): download or save it again"
        raise ValueError(reason) from error


@dataclass
class _Stored:
    """One tensor of a checkpoint, as its header describes it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str


def load_weights(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LoadReport:
    """Fill a model that was built on the meta device with the weights of a checkpoint.

    On the CPU, where file and model agree in dtype, nothing is copied: the parameters are the
    mapped file, read page by page when first used. The mapping is private, so training the model
    never changes the file.

    Args:
        model: a Qwen2PreTrainedModel on the meta device.
        folder: holds model.safetensors, or shards and their index.
        dtype: of the parameters; None = that of the checkpoint's first tensor.
        device: where the parameters go.

    Raises:
        FileNotFoundError, ValueError: a malformed file; or names, shapes or kinds of numbers that
            are not the model's.
    """
    wanted = dict(model.named_parameters(remove_duplicate=False))  # a tied head under both names
    ties = _ties(wanted)
    shards = find_weights(folder)
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    found = _read_headers(shards, prefix)
    report = _compare(wanted, ties, found, model.fresh_heads)
    if report.faults():
        raise ValueError(
            f"the weights in {folder} do not fit this {type(model).__name__} and its config. "
            + report.faults()
        )

    dtype = dtype or next(FLOATS[found[name].kind] for name in found if name in wanted)
    tensors: dict[str, Tensor] = {}
    for path in shards:
        here = {name: s for name, s in found.items() if s.path == path and name in wanted}
        tensors |= _read_tensors(path, here, dtype, device)
    for name, other in ties.items():
        if name in tensors and other in tensors and not torch.equal(tensors[name], tensors[other]):
            raise ValueError(
                f"{found[name].path} holds a {name} that differs from {other}, but the config "
                "ties them: pass tie_word_embeddings=False"
            )
        if other in tensors:
            tensors[name] = tensors[other]  # whichever of the two is stored serves both
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    _initialise(model, report.fresh, dtype, device)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    return report


def _ties(parameters: dict[str, Tensor]) -> dict[str, str]:
    """{name: other name} both ways, for a parameter that has two."""
    names: dict[int, list[str]] = {}
    for name, tensor in parameters.items():
        names.setdefault(id(tensor), []).append(name)
    pairs = [group for group in names.values() if len(group) == 2]
    return {name: other for a, b in pairs for name, other in ((a, b), (b, a))}


def _read_headers(shards: dict[Path, list[str] | None], prefix: str) -> dict[str, _Stored]:
    """What is in the files, by the name the model has for it; no number is read."""
    found: dict[str, _Stored] = {}
    for path, listed in shards.items():
        with open_safetensors(path) as file:
            names = list(file.keys())
            for name in sorted(set(names if listed is None else listed) ^ set(names)):
                verb = "holds" if name in names else "does not hold"
                raise ValueError(f"{path} {verb} tensor {name}, but {INDEX} says otherwise")
            for name in names:
                trunk = TRUNK.fullmatch(name)
                ours = prefix + trunk[1] if trunk else name
                if ours in found:
                    twin = found[ours]
                    raise ValueError(f"{path} holds {name}, but {twin.path} has {twin.name} too")
                view = file.get_slice(name)
                found[ours] = _Stored(path, name, tuple(view.get_shape()), view.get_dtype())
    return found


def _compare(
    wanted: dict[str, Tensor],
    ties: dict[str, str],
    found: dict[str, _Stored],
    fresh_heads: tuple[str, ...],
) -> LoadReport:
    report = LoadReport()
    for name, stored in found.items():
        where = f"{name} in {stored.path.name}"
        if name not in wanted:
            if name.startswith(HEADS):
                report.unused.append(name)
            elif not name.endswith(ROTARY):
                report.unexpected.append(where)
        elif stored.kind not in FLOATS:
            reason = f"wrong dtype kind {stored.kind}, the model needs one of {', '.join(FLOATS)}"
            report.mismatched.append(f"{where}: {reason}")
        elif stored.shape != (shape := tuple(wanted[name].shape)):
            report.mismatched.append(f"{where}: shape {stored.shape}, the model needs {shape}")
    for name in wanted:
        if name not in found and ties.get(name) not in found:
            head = name.rpartition(".")[0] + "."  # half a head is no fresh head
            fresh = name in fresh_heads and not any(other.startswith(head) for other in found)
            (report.fresh if fresh else report.missing).append(name)
    return report


def _read_tensors(
    path: Path, here: dict[str, _Stored], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    with open_safetensors(path, str(device)) as file:
        return {name: file.get_tensor(stored.name).to(dtype) for name, stored in here.items()}


def _initialise(model: nn.Module, names: list[str], dtype: torch.dtype, device) -> None:
    """Give a fresh head its starting values."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        empty = torch.empty_like(module.get_parameter(leaf), dtype=dtype, device=device)
        setattr(module, leaf, nn.Parameter(empty))
    for owner in {name.rpartition(".")[0] for name in names}:
        model.init_weights(model.get_submodule(owner))
