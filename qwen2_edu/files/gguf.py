"""GGUF: a whole model in one file, as llama.cpp keeps it. Here is the container with its numbers;
`gguf_model.py` makes a config and a tokenizer of what it says, and writes such files.

    "GGUF", version, two counts | metadata: name, kind, value … | tensors: name, shape, format,
    offset … | the numbers, in blocks

Integers are little-endian, a text is its length and its UTF-8, shapes stand fastest dimension
first. Qwen2's query and key rows are in the order of the release (a Llama file permutes them).

What a file says of itself is believed only as far as the file goes: lengths and counts are held
against its size before anything is read. The `gguf` package, which writes our files, has a reader
too; it takes eight seconds for a vocabulary of 151,936 tokens and follows any length it is told.

Source: the GGUF specification in ggml's docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .blocks import FORMATS, Format

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # as `struct` spells them
TEXT, LIST = 8, 9
MOST_ENTRIES, MOST_ITEMS = 1 << 16, 1 << 24  # more than any model, more than any vocabulary
HUGE = 1 << 21  # bytes of a large page; the usual one has 4,096
CHUNK = 1 << 19  # numbers unpacked at once: what is between file and tensor stays in the cache

# What GGUF calls the parts, and what the model calls them.
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE = {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
INSIDE |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
INSIDE |= {"attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm"}
INSIDE |= {"ffn_norm": "post_attention_layernorm"}


def parameter_name(name: str) -> str | None:
    """blk.3.attn_q.bias -> model.layers.3.self_attn.q_proj.bias; None for what no Qwen2 has."""
    found = re.fullmatch(r"(?:blk\.(0|[1-9]\d*)\.)?(\w+)\.(weight|bias)", name)
    layer, part, leaf = found.groups() if found else (None, "", "")
    ours = (OUTSIDE if layer is None else INSIDE).get(part)
    if ours is None or (leaf == "bias" and part not in ("attn_q", "attn_k", "attn_v")):
        return None
    return f"{ours}.{leaf}" if layer is None else f"model.layers.{layer}.{ours}.{leaf}"


class Stored(NamedTuple):
    """Where a tensor lies: its shape as the model has it, its format, its bytes in the file."""

    shape: tuple[int, ...]
    format: Format
    start: int
    end: int


class GGUFFile:
    """A Qwen2 model in GGUF: what it says of itself, and where its tensors lie.

    Attributes:
        metadata: {name: number, text or list}, as in the file.
        tensors: {parameter, as the model names it: Stored}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not GGUF, damaged, of another architecture, or in a format we do not read.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Header(self.path, data)
                (version,) = header.numbers("I")
                if version not in (2, 3):
                    kind = f"of version {version}" if version & 0xFFFF else "big-endian"
                    raise ValueError(f"{path} is {kind}: we read GGUF 2 and 3, little-endian")
                n_tensors, n_fields = (header.count("Q", MOST_ENTRIES) for _ in range(2))
                self.metadata: dict[str, Any] = header.metadata(n_fields)
                if (found := self.field("general.architecture", str)) != "qwen2":
                    raise ValueError(f"{path} holds a {found!r} model, and we read 'qwen2'")
                if self.field("split.count", int, 1) > 1:
                    raise ValueError(f"{path} is a part of a model: join all by llama-gguf-split")
                alignment = self.field("general.alignment", int, 32)
                self.tensors: dict[str, Stored] = header.tensors(n_tensors, alignment)

    def field(self, name: str, kind: type, default: Any = ...) -> Any:
        """A metadata field; ValueError if it is not of this kind, or missing without a default."""
        value = self.metadata.get(name, default)
        if value is ...:
            raise ValueError(f"{self.path} lacks the metadata field {name}")
        if value is not default and type(value) is not kind:
            says = f"says {str(value)[:40]!r}, which is no {kind.__name__}"
            raise ValueError(f"{self.path}: metadata field {name} {says}")
        return value

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One parameter, unpacked a piece at a time and rounded to `dtype`. ValueError: the file is
        shorter than when it was opened.
        """
        shape, form, start, _ = self.tensors[name]
        out = empty_for_weights(shape, dtype)
        with open(self.path, "rb") as file:
            file.seek(start)
            for blocks in out.view(-1, form.numbers).split(CHUNK // form.numbers):
                packed = np.fromfile(file, (np.uint8, form.bytes), len(blocks))
                if len(packed) < len(blocks):
                    raise ValueError(f"{self.path} has become shorter while it was read")
                blocks.copy_(form.unpack(torch.from_numpy(packed)))
        return out

    def blocks(self, name: str) -> Tensor:
        """A matrix as it lies in the file: uint8 (rows, blocks of a row, bytes of a block)."""
        (N, K), form, start, _ = self.tensors[name]
        shape = (N, K // form.numbers, form.bytes)
        return torch.from_numpy(np.memmap(self.path, np.uint8, "c", start, shape))

    def read_all(
        self,
        names: Iterable[str] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """Parameters, some at a time; None = all. See `read`."""
        names, threads = list(self.tensors if names is None else names), torch.get_num_threads()
        torch.set_num_threads(1)  # in each: teams of threads on the same cores wait for each other
        torch.empty(1 << 24, dtype=torch.uint8)  # freed, it teaches malloc to keep what is freed
        try:
            with ThreadPoolExecutor(min(threads, 4)) as pool:
                values = pool.map(lambda name: self.read(name, dtype).to(device), names)
                return dict(zip(names, values, strict=True))
        finally:
            torch.set_num_threads(threads)


def empty_for_weights(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """`torch.empty` for numbers that every step reads. A CPU's come in pages of 2 MB where the
    system has them: it looks up where each page lies, and so reads some 5 to 10 % faster.
    """
    size = math.prod(shape) * dtype.itemsize
    if str(device) != "cpu" or size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def open_place(place: Path) -> Path | GGUFFile:
    """What `hub.resolve` found, opened once for all who read it: a folder stays as it is."""
    if not place.is_file():
        return place
    stamp = place.stat()
    return _opened(place, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=1)  # a config, a tokenizer and a model are mostly asked for one after the other
def _opened(path: Path, *stamp: int) -> GGUFFile:
    return GGUFFile(path)


class _Header:
    """Reads the front of a file, in order; `what` says, for messages, which part it is at."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.what = path, data, 4, "the header"

    def fault(self, reason: str) -> ValueError:
        return ValueError(f"{self.path} is not a sound GGUF file: {reason}; fetch or save it again")

    def numbers(self, kind: str, count: int = 1) -> tuple:
        form = struct.Struct(f"<{count}{kind}")
        start, self.at = self.at, self.at + form.size
        if self.at > len(self.data):
            raise self.fault(f"{self.what} goes on beyond the end of the file")
        return form.unpack_from(self.data, start)

    def count(self, kind: str, most: int) -> int:
        (count,) = self.numbers(kind)
        if count > most:
            raise self.fault(f"{self.what} has {count:,} entries, and at most {most:,} make sense")
        return count

    def texts(self, count: int = 1) -> list[str]:
        """So many texts: a vocabulary has 151,936, so without a call for each."""
        data, at, found, length = self.data, self.at, [], struct.Struct("<Q").unpack_from
        size = len(data)
        try:
            for _ in range(count):
                start = at + 8
                at = start + length(data, at)[0]
                if at > size:
                    raise struct.error
                found.append(data[start:at].decode())
        except struct.error:
            raise self.fault(f"{self.what} goes on beyond the end of the file") from None
        except UnicodeDecodeError:
            raise self.fault(f"{self.what} is not UTF-8") from None
        self.at = at
        return found

    def value(self) -> Any:
        (kind,), count = self.numbers("I"), 1
        if several := kind == LIST:
            (kind,), count = self.numbers("I"), self.count("Q", MOST_ITEMS)
        if kind != TEXT and kind not in SCALARS:
            raise self.fault(f"{self.what} is of the unknown kind {kind}")
        values = self.texts(count) if kind == TEXT else self.numbers(SCALARS[kind], count)
        if several:
            return list(values)
        # 1e-6 was rounded to fp32: the shortest decimal that rounds to the same is 1e-6 again.
        return float(str(np.float32(values[0]))) if SCALARS.get(kind) == "f" else values[0]

    def metadata(self, count: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for _ in range(count):
            self.what = "the name of a metadata field"
            (name,) = self.texts()
            self.what = f"metadata field {name!r}"
            if name in fields:
                raise self.fault(f"{self.what} is there twice")
            fields[name] = self.value()
        return fields

    def tensors(self, count: int, alignment: int) -> dict[str, Stored]:
        if alignment < 1 or alignment & (alignment - 1):
            raise self.fault(f"general.alignment is {alignment}, which is no power of two")
        stored = sorted((self.tensor() for _ in range(count)), key=lambda item: item[1].start)
        base = free = -(-self.at // alignment) * alignment
        found: dict[str, Stored] = {}
        for name, tensor in stored:  # which counts from `base`
            start, end = base + tensor.start, base + tensor.end
            if name in found or start < free or start % alignment or end > len(self.data):
                raise self.fault(
                    f"{name} cannot lie in bytes {start:,} to {end:,}: it is there twice, or what "
                    f"comes before it ends at {free:,}, or the file at {len(self.data):,}"
                )
            found[name], free = tensor._replace(start=start, end=end), end
        return found

    def tensor(self) -> tuple[str, Stored]:
        self.what = "the name of a tensor"
        (name,) = self.texts()
        self.what = f"tensor {name!r}"
        shape = self.numbers("Q", self.count("I", 4))[::-1]
        (kind,), (start,) = self.numbers("I"), self.numbers("Q")
        if (parameter := parameter_name(name)) is None:
            raise ValueError(f"{self.path} holds {self.what}, which no Qwen2 has")
        if kind not in FORMATS:
            from gguf import GGMLQuantizationType  # it knows the names of all formats

            named = {k.value: k.name for k in GGMLQuantizationType}.get(kind, kind)
            read = ", ".join(form.name for form in FORMATS.values())
            raise ValueError(f"{self.path}: {self.what} is in format {named}, and we read {read}")
        form = FORMATS[kind]
        if not shape or 0 in shape or shape[-1] % form.numbers:
            raise self.fault(f"{self.what} cannot have shape {shape} in {form.name}")
        size = math.prod(shape) // form.numbers * form.bytes
        return parameter, Stored(shape, form, start, start + size)
