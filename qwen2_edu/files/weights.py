"""Weights from disk into a model, and back: safetensors, nothing else.

A safetensors file is 8 bytes that say how long the header is, a JSON header {name: dtype, shape,
offsets}, and the raw numbers. It can be mapped into memory, so that a number costs nothing until
it is used; and nothing in it can run. A pickle (`pytorch_model.bin`) can run anything: refused.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..checks import warn_caller
from .checksums import SUMS
from .disk import read_json
from .gguf import GGUFFile

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NO_SAFETENSORS = f"has neither {SINGLE} nor {INDEX}: look for a copy in safetensors, as a pickle "
NO_SAFETENSORS += "(pytorch_model.bin) can run any code when it is opened, so it is refused"
# What a save leaves behind must be its own: these go if it does not write them. A reader takes
# model.safetensors before the index, the index before loose shards, and believes all the rest.
OUTDATED = re.compile(
    rf"{SINGLE}|{INDEX}|model-\d{{5}}-of-\d{{5}}\.safetensors|generation_config\.json|{SUMS}"
)
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = FLOATS | {"I8": torch.int8, "U8": torch.uint8}

# Every checkpoint has the same trunk, alone or under "model." ("transformer." for span heads).
TRUNK = re.compile(r"(?:model\.|transformer\.)?((?:embed_tokens|layers|norm)\..+)")
LAYER = re.compile(r"(?:\w+\.)?layers\.(\d+)\.")
HEADS = ("lm_head.", "score.", "qa_outputs.")  # a checkpoint may have a head the model has not
FOREIGN = re.compile(r"(?!model\.|transformer\.)[A-Za-z_]\w*(\.\w+)+")  # or one no Qwen2 has
ROTARY = "rotary_emb.inv_freq"  # in very old checkpoints; it follows from the config


def find_weights(folder: str | os.PathLike[str]) -> list[Path]:
    """Which files hold the weights of a checkpoint?

    Raises:
        FileNotFoundError: no safetensors file; a shard missing.
        ValueError: a broken index, or one that points outside the folder.
    """
    folder, index = Path(folder), Path(folder) / INDEX
    found = {SINGLE: ""}  # file: a tensor in it
    if not (folder / SINGLE).is_file() and not index.is_file():
        raise FileNotFoundError(f"{folder} {NO_SAFETENSORS}")
    if not (folder / SINGLE).is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} is not an index: it needs weight_map, {{tensor: file}}")
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", shard):
                hint = "a shard must be a plain file name that ends in .safetensors"
                raise ValueError(f"{index} puts tensor {name} into {shard!r}: {hint}")
        found = {shard: name for name, shard in weight_map.items()}
    home = folder.resolve()  # which a link may leave for the blobs of the hub's cache alone
    blobs = next((p.parent / "blobs" for p in home.parents if p.name == "snapshots"), home)
    for path, name in [(folder / file, name) for file, name in found.items()]:
        if not path.is_file():
            hint = f"by {INDEX} it holds {name}: download it again"
            raise FileNotFoundError(f"{path} is missing, {hint}")
        if (target := path.resolve()).parent not in (home, blobs):
            raise ValueError(f"{path} is a link that leaves its folder, to {target}: refused")
    return [folder / file for file in found]


def open_safetensors(path: str | os.PathLike[str], device: str = "cpu"):
    """A safetensors file mapped into memory, for a `with` statement; ValueError if malformed."""
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, RuntimeError) as error:  # torch's, which opens the file once more
        reason = f"{path} is not a sound safetensors file ({error}): download or save it again"
        raise ValueError(reason) from error


class _Stored(NamedTuple):
    """One tensor of a checkpoint, as its header describes it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str


def load_weights(
    model: nn.Module,
    folder: str | os.PathLike[str] | GGUFFile,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    mmap: bool = True,
    ignore_mismatched_sizes: bool = False,
) -> dict[str, set[str] | list[str]]:
    """Fill a model that was built on the meta device with the weights of a checkpoint.

    On the CPU, where file and model agree in dtype, nothing is copied: the parameters are the
    mapped file, read page by page when first used. The mapping is private, so training the model
    never changes the file. Options are those of `from_pretrained`; dtype None = that of the
    checkpoint's first tensor.

    Returns:
        What was newly initialised, `missing_keys` that a checkpoint may lack (`fresh_heads`), and
        `mismatched_keys`; `unexpected_keys`, layers and heads that are left out with a warning; and
        `error_msgs`, which are none, as what else does not fit is an error.

    Raises:
        FileNotFoundError, ValueError: a malformed file; or names, shapes or kinds of numbers that
            are not the model's.
    """
    wanted = dict(model.named_parameters(remove_duplicate=False))  # a tied head under both names
    ties = {name: other for (name, p), (other, q) in permutations(wanted.items(), 2) if p is q}
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    found = _name_all(_tensors(folder), prefix)
    absent = [name for name in wanted if name not in found and ties.get(name) not in found]
    odd: list[str] = []
    if ignore_mismatched_sizes:
        odd = [n for n in wanted if n in found and found[n].shape != tuple(wanted[n].shape)]
        whole = {name.rpartition(".")[0] for name in odd}
        odd = [name for name in wanted if name.rpartition(".")[0] in whole]  # their biases too
        found = {name: stored for name, stored in found.items() if name not in odd}
    heads = {name.rpartition(".")[0] for name in found}  # half a head is no fresh head
    fresh = [n for n in absent if n in model.fresh_heads and n.rpartition(".")[0] not in heads]
    fresh = list(dict.fromkeys(fresh + odd))
    missing = [name for name in absent if name not in fresh and ties.get(name) not in fresh]
    left_out = _left_out(found, wanted, model.config.num_hidden_layers)
    where = getattr(folder, "path", folder)
    if faults := _faults(wanted, found, missing):
        unfit = f"the weights in {where} do not fit this {type(model).__name__} and its config"
        raise ValueError(f"{unfit}. {faults}")
    if said := ", ".join(filter(None, left_out)):
        warn_caller(f"{where} also holds {said}: not read")

    first = next(name for name in found if not _is_packed(name, wanted[name]))
    dtype = dtype or FLOATS[found[first].kind]
    tensors: dict[str, Tensor] = {}
    if isinstance(folder, GGUFFile):
        read = folder.read_all([stored.name for stored in found.values()], dtype, device)
        tensors = {name: read[stored.name] for name, stored in found.items()}
    for path in {stored.path for stored in found.values()} if not tensors else ():
        with open_safetensors(path, str(device)) as file:
            for name, stored in found.items():
                if stored.path == path:
                    tensor = file.get_tensor(stored.name)
                    kind = tensor.dtype if _is_packed(name, tensor) else dtype
                    tensors[name] = tensor.to(kind, copy=not mmap)
    for name, other in ties.items():
        if name in tensors and other in tensors and not torch.equal(tensors[name], tensors[other]):
            twin = f"{found[name].path} holds a {name} that differs from {other}"
            raise ValueError(f"{twin}, but the config ties them: pass tie_word_embeddings=False")
        if other in tensors:
            tensors[name] = tensors[other]  # whichever of the two is stored serves both
    for name in fresh:
        tensors[name] = torch.empty(wanted[name].shape, dtype=dtype, device=device)
    model.load_state_dict(tensors, strict=False, assign=True)
    for owner in {name.rpartition(".")[0] for name in fresh}:
        model.init_weights(model.get_submodule(owner))
    model.tie_weights()
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    return {
        "missing_keys": {*fresh} - {*odd},
        "unexpected_keys": {name for names in left_out.values() for name in names},
        "mismatched_keys": {*odd},
        "error_msgs": [],
    }


def check_layers(source: Path | GGUFFile, count: int) -> None:
    """Refuse a config with more layers than the headers show, before any layer is built."""
    found = {int(layer[1]) for tensor in _tensors(source) if (layer := LAYER.match(tensor.name))}
    if count > (there := max(found, default=-1) + 1):
        where = f"{getattr(source, 'path', source)} has weights of {there} layers"
        raise ValueError(f"num_hidden_layers is {count}, but {where}")


def _tensors(source: str | os.PathLike[str] | GGUFFile) -> Iterator[_Stored]:
    """What is in the files; no number is read."""
    if isinstance(source, GGUFFile):
        for name, stored in source.tensors.items():  # blocks become fp32 if nothing else is said
            yield _Stored(source.path, name, stored.shape, "F32")
        return
    for path in find_weights(source):
        with open_safetensors(path) as file:
            for name in file.keys():
                view = file.get_slice(name)
                yield _Stored(path, name, tuple(view.get_shape()), view.get_dtype())


def _name_all(tensors: Iterable[_Stored], prefix: str) -> dict[str, _Stored]:
    """Each tensor by the name that the model has for it."""
    found: dict[str, _Stored] = {}
    for stored in tensors:
        trunk = TRUNK.fullmatch(stored.name)
        ours = prefix + trunk[1] if trunk else stored.name
        if ours in found:
            twin = found[ours]
            both = f"{stored.path} holds {stored.name}, but {twin.path} has {twin.name} too"
            raise ValueError(both)
        found[ours] = stored
    return found


def _left_out(
    found: dict[str, _Stored], wanted: dict[str, Tensor], layers: int
) -> dict[str, list[str]]:
    """What a checkpoint has beyond the model, and may have: how a warning calls it -> its names,
    "" for what needs none. It is taken out of `found`.
    """
    said: dict[str, list[str]] = {}
    for name in [name for name in found if name not in wanted]:
        layer = LAYER.match(name)
        if layer and int(layer[1]) >= layers:
            what = f"layers from {layers} on"
        elif name.endswith(ROTARY) or name.startswith(HEADS):
            what = ""
        elif FOREIGN.fullmatch(name) and not TRUNK.fullmatch(name):
            what = name.split(".")[0]
        else:
            continue
        said.setdefault(what, []).append(name)
        del found[name]
    return said


def _faults(wanted: dict[str, Tensor], found: dict[str, _Stored], missing: list[str]) -> str:
    """What makes the load an error, in a sentence; empty if nothing does."""
    unexpected, mismatched = [], []
    for name, stored in found.items():
        where = f"{name} in {stored.path.name}"
        if name not in wanted:
            unexpected.append(where)
        elif _is_packed(name, wanted[name]) and KINDS.get(stored.kind) != wanted[name].dtype:
            mismatched.append(f"{where}: {stored.kind}, the model needs {wanted[name].dtype}")
        elif not _is_packed(name, wanted[name]) and stored.kind not in FLOATS:
            reason = f"wrong dtype kind {stored.kind}, the model needs one of {', '.join(FLOATS)}"
            mismatched.append(f"{where}: {reason}")
        elif stored.shape != (shape := tuple(wanted[name].shape)):
            mismatched.append(f"{where}: shape {stored.shape}, the model needs {shape}")
    kinds = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    return ". ".join(
        f"{len(names)} {kind}: {'; '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for kind, names in kinds.items()
        if names
    )


def _is_packed(name: str, tensor: Tensor) -> bool:
    """Is it a part of a quantised matrix, which is read as it is stored?"""
    return name.endswith(".scales") or not tensor.is_floating_point()


def write_weights(model: nn.Module, folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write a model's parameters beside its config.json, as a release is laid out: in one file, or
    in shards with an index. A tied one is written once, under its first name.
    """
    from huggingface_hub import save_torch_state_dict  # here: loading needs none of it

    tensors = {name: p.detach() for name, p in model.named_parameters()}  # what is tied comes once
    for name, t in tensors.items():
        if t.nbytes < t.untyped_storage().nbytes():  # a part of another: the client knows wholes
            tensors[name] = t.clone()
    try:
        save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
    except SafetensorError as error:  # "I/O error: No space left on device (os error 28)"
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
    for path in folder.glob("*.safetensors"):  # which safetensors lets nobody else read
        shutil.copymode(folder / "config.json", path)
