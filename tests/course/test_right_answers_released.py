"""Right answers to the exercises of lesson 09, in several styles; none comes from the solutions."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import torch

from qwen2_edu.course import ex09
from qwen2_edu.files.gguf import parameter_name
from tests.course.right_answers import questions

# --- 1, where a tensor lies


def span_loop(data, name):
    size = sum(byte << 8 * i for i, byte in enumerate(data[:8]))
    for key, entry in json.loads(data[8 : 8 + size]).items():
        if key == name:
            return [8 + size + at for at in entry["data_offsets"]]


def span_from_the_end(data, name):
    """The last tensor ends where the file ends."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    behind = len(data) - max(entry["data_offsets"][1] for entry in header.values())
    return tuple(behind + at for at in header[name]["data_offsets"])


def span_numpy(data, name):
    size = int(np.frombuffer(data[:8], "<u8")[0])
    return np.array(json.loads(data[8 : 8 + size])[name]["data_offsets"]) + 8 + size


def span_torch(data, name):
    size = int.from_bytes(data[:8], "little")
    return torch.tensor(json.loads(data[8 : 8 + size])[name]["data_offsets"]) + 8 + size


# --- 2, a block


def block_loop(data):
    bits, numbers = data[0] + 256 * data[1], []
    exponent, fraction = bits >> 10 & 31, bits & 1023
    d = 2.0 ** (exponent - 15) * (1 + fraction / 1024) if exponent else fraction * 2.0**-24
    for byte in data[2:]:
        q = byte - 256 if byte > 127 else byte
        numbers.append(q * (-d if bits >> 15 else d))
    return numbers


def block_struct(data):
    d, *q = struct.unpack("<e32b", data)
    return [d * x for x in q]


def block_numpy(data):
    return np.frombuffer(data[:2], np.float16).astype(float) * np.frombuffer(data[2:], np.int8)


def block_torch(data):
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return raw[:2].view(torch.float16).float() * raw[2:].view(torch.int8)


# --- 3, names


def name_loop(name):
    pairs = {"blk.": "model.layers.", "token_embd": "model.embed_tokens"}
    pairs |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    pairs |= {"output_norm": "model.norm", "attn_output": "self_attn.o_proj", "output": "lm_head"}
    pairs |= {"attn_": "self_attn.", "ffn_": "mlp."}
    for old, new in pairs.items():
        name = name.replace(old, new)
    stem, leaf = name.rsplit(".", 1)
    short = stem.rsplit(".", 1)[-1] in ("q", "k", "v", "gate", "up", "down")
    return f"{stem}{'_proj' * short}.{leaf}"


PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def name_by_table(name):
    match name.split("."):
        case ["blk", i, part, leaf]:
            return f"model.layers.{i}.{PARTS[part]}.{leaf}"
        case [part, leaf]:
            return f"{OUTSIDE[part]}.{leaf}"


def name_by_regex(name):
    name = re.sub(r"^blk\.(\d+)\.(\w+)", lambda m: f"model.layers.{m[1]}.{PARTS[m[2]]}", name)
    return re.sub(r"^(output_norm|output|token_embd)\b", lambda m: OUTSIDE[m[1]], name)


RIGHT = {
    "ex09_1": [span_loop, span_from_the_end, span_numpy, span_torch],
    "ex09_2": [block_loop, block_struct, block_numpy, block_torch],
    "ex09_3": [name_loop, parameter_name, name_by_table, name_by_regex],
    "ex09_4": [ex09.HURT, f" {ex09.HURT.upper()} ", ex09.HURT.title(), f"{ex09.HURT}\n"],
}


# --- mistakes that nobody foresaw: refused all the same, and told nothing false


OTHERS = [
    ("ex09_1", lambda data, name: (data.find(name.encode()), len(data))),
    ("ex09_2", lambda data: [x - 128.0 for x in data[2:]]),
    ("ex09_3", lambda name: parameter_name(name).replace(".11.", ".1.")),
]
(
    test_right_in_any_style,
    test_every_exercise_is_answered,
    test_other_mistakes_are_shown_a_case,
) = questions("09", RIGHT, OTHERS)
