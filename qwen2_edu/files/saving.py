"""A model back to disk, as a release is laid out: one safetensors file, or shards and an index."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from .checksums import SUMS
from .weights import INDEX, SINGLE

# What a save leaves behind must be its own: these go if it does not write them. A reader takes
# model.safetensors before the index, the index before loose shards, and believes all the rest.
OUTDATED = re.compile(
    rf"{SINGLE}|{INDEX}|model-\d{{5}}-of-\d{{5}}\.safetensors|generation_config\.json|{SUMS}"
)


def write_weights(model: nn.Module, folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write a model's parameters. A tied one is written once, under its first name.

    max_shard_size: in bytes, or "5GB". A tensor is never split, so a shard exceeds it only by being
    a single tensor.
    """
    from huggingface_hub import split_torch_state_dict_into_shards  # here: loading needs none of it

    tensors = {name: p.detach() for name, p in model.named_parameters()}  # what is tied comes once
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        path = folder / file
        path.touch()
        mode = path.stat().st_mode  # of an ordinary new file: safetensors makes a private one
        shard = {name: tensors[name].cpu().contiguous() for name in names}
        try:
            save_file(shard, path, metadata={"format": "pt"})  # which other readers ask for
        except SafetensorError as error:  # "I/O error: No space left on device (os error 28)"
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
        path.chmod(mode)
    if plan.is_sharded:
        weight_map = dict(sorted(plan.tensor_to_filename.items()))
        index = {"metadata": plan.metadata, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
