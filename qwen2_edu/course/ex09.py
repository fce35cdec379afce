"""The exercises of lesson 09: loading released weights."""

from __future__ import annotations

import json
import struct

import torch
from torch import Tensor

from .exercises import Exercise

HURT = "model.layers.3.post_attention_layernorm.weight"


def damaged(data: bytes) -> bytes:
    """A copy of a safetensors file with one byte changed. Look here only after exercise 4."""
    bad = bytearray(data)
    bad[span(data, HURT)[1] - 4] ^= 1
    return bytes(bad)


def _offsets(data: bytes, name: str) -> tuple[int, int, int]:
    (size,) = struct.unpack("<Q", data[:8])
    start, end = json.loads(data[8 : 8 + size])[name]["data_offsets"]
    return size, start, end


def span(data: bytes, name: str) -> tuple[int, int]:
    """Where a tensor lies in a safetensors file: its first byte, and the first one behind it."""
    size, start, end = _offsets(data, name)
    return 8 + size + start, 8 + size + end


def without_length(data: bytes, name: str) -> tuple[int, int]:
    size, start, end = _offsets(data, name)
    return size + start, size + end


def start_and_size(data: bytes, name: str) -> tuple[int, int]:
    first, end = span(data, name)
    return first, end - first


def block(data: bytes) -> list[float]:
    """The 32 numbers of a Q8_0 block."""
    (d,), q = struct.unpack("<e", data[:2]), struct.unpack("32b", data[2:])
    return [d * x for x in q]


def unsigned(data: bytes) -> list[float]:
    (d,) = struct.unpack("<e", data[:2])
    return [d * x for x in data[2:]]


def bfloat16_scale(data: bytes) -> list[float]:
    (d,), q = struct.unpack("<f", bytes(2) + data[:2]), struct.unpack("32b", data[2:])
    return [d * x for x in q]


def half_products(data: bytes) -> Tensor:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return raw[:2].view(torch.float16) * raw[2:].view(torch.int8)


def always_a_leading_one(data: bytes) -> list[float]:
    """The scale by the formula alone, the rule for exponent 0 left out."""
    (bits,), q = struct.unpack("<H", data[:2]), struct.unpack("32b", data[2:])
    d = 2.0 ** ((bits >> 10 & 31) - 15) * (1 + (bits & 1023) / 1024)
    return [(-d if bits >> 15 else d) * x for x in q]


def integer_scale(data: bytes) -> list[float]:
    (d,), q = struct.unpack("<H", data[:2]), struct.unpack("32b", data[2:])
    return [float(d * x) for x in q]


PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def our_name(name: str) -> str:
    """What the model calls a tensor of a GGUF file."""
    *layer, part, leaf = name.split(".")
    if not layer:
        return f"{OUTSIDE[part]}.{leaf}"
    return f"model.layers.{layer[1]}.{PARTS[part]}.{leaf}"


def made_file(shapes: dict[str, tuple[int, int]], note: str) -> bytes:
    """A safetensors file of zeros."""
    header, at = {"__metadata__": {"note": note}}, 0
    for name, (rows, width) in shapes.items():
        size = 4 * rows * width
        header[name] = {"dtype": "F32", "shape": [rows, width], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


ONE = made_file({"a": (2, 3), "b": (1, 5)}, "one")
TWO = made_file({"b": (4, 4), "c": (2, 2), "a": (3, 1)}, "the second file has a longer header")
BLOCKS = [
    struct.pack("<e32b", 0.25, *range(-16, 16)),
    struct.pack("<e32b", -0.003, *(7 * i % 255 - 127 for i in range(32))),
    struct.pack("<e32b", 3e-5, *(9 * i % 255 - 127 for i in range(32))),  # exponent 0
]
NAMES = [
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "blk.0.ffn_norm.weight",
    "blk.3.attn_q.bias",
    "blk.11.attn_output.weight",
    "blk.23.ffn_down.weight",
]

EXERCISES = [
    Exercise(
        name="ex09_1",
        title="Where a tensor lies",
        answer=span,
        cases=[(ONE, "a"), (ONE, "b"), (TWO, "c"), (TWO, "a")],
        wrong={
            "The header is counted, and the eight bytes in front of it are not.": without_length,
            "Offsets count from the end of the header, not from the start of the file.": (
                lambda data, name: _offsets(data, name)[1:]
            ),
            "The second number is where the tensor ends, not how long it is.": start_and_size,
        },
        tolerance=0,
    ),
    Exercise(
        name="ex09_2",
        title="A block of 32 numbers",
        answer=block,
        cases=[(data,) for data in BLOCKS],
        wrong={
            "Bytes from 128 on stand for negative numbers: 255 is -1.": unsigned,
            "The scale is an fp16. These are its bits read as bfloat16.": bfloat16_scale,
            "These are the integers alone. Multiply each by the scale.": (
                lambda data: list(struct.unpack("32b", data[2:]))
            ),
            "The scale is an fp16. Here its two bytes are read as an integer.": integer_scale,
            "An exponent of 0 has a rule of its own: the scale is f / 1024 times 2 to the -14.": (
                always_a_leading_one
            ),
            "The products are rounded to fp16. Make the scale wider before you multiply.": (
                half_products
            ),
        },
        tolerance=1e-6,
    ),
    Exercise(
        name="ex09_3",
        title="From one set of names to the other",
        answer=our_name,
        cases=[(name,) for name in NAMES],
        wrong={
            "output is the head, and output_norm is the last norm of the trunk.": (
                lambda name: our_name(name).replace("lm_head", "model.norm")
            ),
            "The norm before the MLP has an odd name in the release. See lesson 07.": (
                lambda name: our_name(name).replace("post_attention_layernorm", "mlp.norm")
            ),
            "Layers belong to the trunk, and the trunk is an attribute called model.": (
                lambda name: our_name(name).replace("model.layers", "layers")
            ),
            "A bias is not a weight: keep the last part of the name.": (
                lambda name: our_name(name).replace(".bias", ".weight")
            ),
        },
    ),
    Exercise(
        name="ex09_4",
        title="Which tensor is damaged?",
        answer=HURT,
        wrong={
            "That one is stored behind it. Did you take off the eight bytes of the length?": (
                "model.layers.3.self_attn.k_proj.bias"
            ),
            "That is the place counted from the start of the file. Offsets begin behind the "
            "header.": "model.layers.3.self_attn.k_proj.weight",
            "That is its name in a GGUF file. Give the name that stands in this header.": (
                "blk.3.ffn_norm.weight"
            ),
        },
    ),
]
