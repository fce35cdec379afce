"""What a GGUF file says of its model, as a config and a tokenizer; and a model written as GGUF.

Both ways go by the same tables. Source of the names: llama.cpp's convert_hf_to_gguf.py and
gguf-py/gguf/constants.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..bpe import text_to_token, token_to_text
from ..checks import one_of
from ..quantize import round_int4
from ..text.runs import AddedToken
from .blocks import FORMATS
from .disk import replacing
from .gguf import GGUFFile

# GGUF's names, after "qwen2.", and those of config.json.
NEEDED = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
MAY_BE = dict.fromkeys(("attention.key_length", "attention.value_length"), "head_dim")
MAY_BE |= {"rope.dimension_count": "head_dim", "vocab_size": "vocab_size"}
FLOATS = ("rope.freq_base", "attention.layer_norm_rms_epsilon", "rope.scaling.factor")
LINEAR = {"rope.scaling.factor": "factor"}
YARN = LINEAR | {"rope.scaling.original_context_length": "original_max_position_embeddings"}
SCALING = {"none": {}, "linear": LINEAR, "yarn": YARN}
PARTS = {"bos": "bos", "eos": "eos", "padding": "pad"}  # that a token can play
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of token; unused ones fill the matrix up
KIND = {"model": "gpt2", "pre": "qwen2"}  # of a tokenizer, and how it splits a text
TOKENIZER, TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"


def config_fields(file: GGUFFile) -> dict[str, Any]:
    """The fields of a config.json, for `Qwen2Config.from_dict`.

    `torch_dtype` is float32 for blocks: nothing shorter holds every scale times integer.

    Raises:
        ValueError: a field is missing, malformed or unknown, or the tensors say otherwise.
    """

    def get(theirs: str, *default: Any) -> Any:
        value = file.field(f"qwen2.{theirs}", float if theirs in FLOATS else int, *default)
        if value is not None and not value > 0:
            raise ValueError(f"{file.path}: metadata field qwen2.{theirs} cannot be {value}")
        return value

    fields: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    fields |= {ours: get(theirs) for theirs, ours in NEEDED.items()}
    n = fields["num_hidden_layers"]
    embedding = file.tensors.get("model.embed_tokens.weight")
    layers = {int(name.split(".")[2]) for name in file.tensors if name.startswith("model.layers.")}
    if embedding is None or len(layers) != n or max(layers) != n - 1:
        found = f"{len(layers)} layers are there, with{'' if embedding else 'out'} an embedding"
        raise ValueError(f"{file.path}: {n} layers and an embedding are announced, {found}")
    fields["vocab_size"] = embedding.shape[0]
    for theirs, ours in MAY_BE.items():
        value = get(theirs, None)
        if value is not None and fields.setdefault(ours, value) != value:
            other = f"where {ours} is {fields[ours]}"
            raise ValueError(f"{file.path}: metadata field qwen2.{theirs} is {value}, {other}")

    kind = file.field("qwen2.rope.scaling.type", str, "none")
    scaling = SCALING[one_of(f"{file.path}: qwen2.rope.scaling.type", kind, list(SCALING))]
    if scaling:
        values = {ours: get(theirs) for theirs, ours in scaling.items()}
        fields["rope_scaling"] = {"rope_type": kind, **values}
    known = {*NEEDED, *MAY_BE, *scaling, "rope.scaling.type", "rope.scaling.finetuned"}
    for name in file.metadata:
        if name.startswith("qwen2.") and name.removeprefix("qwen2.") not in known:
            raise ValueError(f"{file.path}: metadata field {name} is not known, and may matter")

    fields["tie_word_embeddings"] = "lm_head.weight" not in file.tensors
    for theirs, ours in PARTS.items():
        fields[f"{ours}_token_id"] = file.field(f"{TOKENIZER}{theirs}_token_id", int, None)
    whole = {"F16": "float16", "BF16": "bfloat16"}
    fields["torch_dtype"] = whole.get(embedding.format.name, "float32")
    return fields


def tokenizer_settings(file: GGUFFile) -> dict[str, Any]:
    """The arguments of a tokenizer, as `text.files.read_folder` finds them in a folder.

    Raises:
        ValueError: a tokenizer of another kind, or a malformed one.
    """
    for name, value in KIND.items():
        one_of(f"{file.path}: {TOKENIZER}{name}", file.field(TOKENIZER + name, str), [value])
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        value = file.field(TOKENIZER + name, bool, False)
        one_of(f"{file.path}: {TOKENIZER}{name}", value, [False])
    lists = ("tokens", "token_type", "merges")
    tokens, kinds, merges = (file.field(TOKENIZER + name, list) for name in lists)
    parts = {ours: file.field(f"{TOKENIZER}{x}_token_id", int, None) for x, ours in PARTS.items()}
    try:
        if not len(set(tokens)) == len(tokens) == len(kinds):
            counts = f"{len(set(tokens))} different ones, {len(kinds)} kinds"
            raise ValueError(f"there are {len(tokens)} tokens, {counts}")
        if strange := set(kinds) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
            raise ValueError(f"a token is of kind {strange.pop()}, which no Qwen2's is")
        by_id = dict(enumerate(tokens))
        spelled = {t: text_to_token(t) for i, t in by_id.items() if kinds[i] == NORMAL}
        pairs = [(spelled[a], spelled[b]) for a, b in (merge.split(" ") for merge in merges)]
        roles = {f"{part}_token": by_id[i] for part, i in parts.items() if i is not None}
        added = {
            i: AddedToken(token, special=kinds[i] == CONTROL)
            for i, token in by_id.items()
            if kinds[i] in (CONTROL, USER_DEFINED)
        }
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{file.path} holds a malformed tokenizer: {error}") from error
    vocab = {spelled[token]: i for i, token in by_id.items() if kinds[i] == NORMAL}
    length, template = file.field("qwen2.context_length", int), file.field(TEMPLATE, str, None)
    settings = {"vocab": vocab, "merges": pairs, "added_tokens": added, "chat_template": template}
    return settings | {"model_max_length": length} | roles


# -- writing ---------------------------------------------------------------------------------------


DTYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32, "Q4_0": 2}  # what general.file_type says
OUTER = ("model.embed_tokens.weight", "lm_head.weight")


def save_gguf(
    model: nn.Module, tokenizer: Any, path: str | os.PathLike[str], dtype: str = "F32"
) -> Path:
    """Write a model and its tokenizer as one file that llama.cpp opens. Returns its path.

    Args:
        model: a Qwen2ForCausalLM.
        tokenizer: a Qwen2Tokenizer, or the fast one.
        dtype: of the matrices: "F32", "F16", "BF16", "Q8_0" (8.5 bits a number) or "Q4_0" (4.5, and
            embedding and head in Q8_0, as llama.cpp keeps them). Vectors are few, and
            llama.cpp wants them in fp32.

    Raises:
        ValueError: a model that llama.cpp's Qwen2 cannot compute, or a tokenizer not the model's.
        OSError: the folder cannot be written.
    """
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
    from gguf.quants import quantize

    path = Path(path)
    one_of("dtype", dtype, list(DTYPES))
    fields = _model_fields(model) | _tokenizer_fields(tokenizer, model.config.vocab_size)
    forms = {form.name: form for form in FORMATS.values()}
    tensors, names = [], get_tensor_name_map(MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    for name, value in model.named_parameters():  # a tied head is not among them
        kind = "Q8_0" if dtype == "Q4_0" and name in OUTER else dtype
        form = forms[kind if value.ndim == 2 else "F32"]
        if value.shape[-1] % form.numbers:
            rows = f"{name} has rows of {value.shape[-1]}"
            raise ValueError(f"{dtype} packs {form.numbers} numbers of a row, {rows}: take F16")
        tensors.append((names.get_name(name, (".weight", ".bias")), value.detach(), form))
    with replacing(path.parent) as draft:
        writer = GGUFWriter(draft / path.name, "qwen2")
        writer.add_file_type(DTYPES[dtype])
        add = {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}
        add |= {int: writer.add_uint32, float: writer.add_float32}
        for name, value in fields.items():
            add[type(value)](name, value)
        for name, value, form in tensors:
            size, kind = value.numel() // form.numbers * form.bytes, GGMLQuantizationType[form.name]
            writer.add_tensor_info(name, value.shape, np.dtype("float32"), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, value, form in tensors:
            if form.name == "Q4_0":  # as our own int4: of each block the scale, then its numbers
                numbers, scales = round_int4(value.cpu())
                blocks = (scales[..., None].view(torch.uint8), numbers.unflatten(1, (-1, 16)))
                data = torch.cat(blocks, dim=-1).flatten(1).numpy()  # (N, K / 32 * 18)
            else:
                data = quantize(value.float().cpu().numpy(), GGMLQuantizationType[form.name])
            writer.write_tensor_data(data)
        writer.close()
    return path


def _model_fields(model: nn.Module) -> dict[str, Any]:
    config = model.config
    D, H, E = config.head_dim, config.num_attention_heads, config.hidden_size
    if model.get_output_embeddings() is None:
        name = type(model).__name__
        raise ValueError(f"a {name} has no head over the vocabulary, which llama.cpp's Qwen2 needs")
    if "sliding_attention" in (kinds := config.layer_types):
        slides = f"from layer {kinds.index('sliding_attention')} on, attention slides"
        other = "and llama.cpp's Qwen2 knows no window: it would compute another model"
        raise ValueError(f"{slides}, {other}; save_pretrained keeps this one")
    if D * H != E:
        raise ValueError(f"llama.cpp's Qwen2 has heads as wide as the model: {H} x {D} is not {E}")
    rope = dict(config.rope_parameters)
    kind = rope.pop("rope_type").replace("default", "none")
    if kind == "yarn":
        rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    scaling = SCALING.get(kind, {})
    if kind not in SCALING or set(rope) != {"rope_theta", *scaling.values()}:
        raise ValueError(f"llama.cpp's Qwen2 cannot be told rope_scaling={config.rope_scaling}")
    values = {ours: getattr(config, ours) for ours in (NEEDED | MAY_BE).values()} | rope
    fields: dict[str, Any] = {"qwen2.rope.scaling.type": kind}
    for theirs, ours in (NEEDED | MAY_BE | scaling).items():
        fields[f"qwen2.{theirs}"] = (float if theirs in FLOATS else int)(values[ours])
    return fields


def _tokenizer_fields(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    tokens = tokenizer.convert_ids_to_tokens(list(range(vocab_size)))
    if beyond := len(tokenizer) - sum(token is not None for token in tokens):
        raise ValueError(f"{beyond} tokens have ids beyond the model's last, {vocab_size - 1}")
    kinds = [UNUSED if token is None else NORMAL for token in tokens]
    for token_id, token in tokenizer.added_tokens_decoder.items():
        kinds[token_id] = CONTROL if token.special else USER_DEFINED
    fields: dict[str, Any] = {**KIND, "add_bos_token": False, "token_type": kinds}
    fields["tokens"] = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)]
    fields["merges"] = [" ".join(map(token_to_text, pair)) for pair in tokenizer.merges]
    ids = {theirs: getattr(tokenizer, f"{ours}_token_id") for theirs, ours in PARTS.items()}
    fields |= {f"{part}_token_id": i for part, i in ids.items() if i is not None}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        raise ValueError(f"GGUF holds one chat template, not {', '.join(template)}: choose one")
    text = {} if template is None else {TEMPLATE: template}
    return {TOKENIZER + name: value for name, value in fields.items()} | text
