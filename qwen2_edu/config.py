"""The numbers that fix a Qwen2 model, read from and written to a released `config.json`.

A release spells its fields as transformers 4 did (`rope_theta`, `rope_scaling`, `torch_dtype`);
transformers 5 writes `rope_parameters` and `dtype`. Both are read. The released spelling is
written, which both versions open.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import torch

from .checks import (
    Range,
    check_json,
    check_numbers,
    checked,
    did_you_mean,
    one_of,
    plain,
    warn_caller,
)

FULL, SLIDING = "full_attention", "sliding_attention"
FLOATS = ("float64", "float32", "float16", "bfloat16")
ATTENTIONS = ("sdpa", "eager")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Far above any model, and low enough that no product of two overflows, whatever a file says.
SIZE, HEADS, POSITIVE = Range(1, 2**27, True), Range(1, 2**14, True), Range(0, 1e30, above=True)
LABELS = Range(1, 2**20, whole=True)
RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), SIZE),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), HEADS),
    "num_hidden_layers": Range(1, 10_000, whole=True),
    "max_position_embeddings": Range(1, 2**53, whole=True),
    **dict.fromkeys(("rope_theta", "rms_norm_eps"), POSITIVE),
    "initializer_range": Range(0, 1e30),
    "attention_dropout": Range(0, 0.99999),
}
# Fields of other models that change what is computed, by the value at which they do not; None does
# not either. Whatever else is unknown is kept and has no effect.
_OFF = """use_mrope use_qk_norm qk_norm use_logn_attn use_dynamic_ntk rope_interleave alibi
add_cross_attention is_encoder_decoder use_bidirectional_attention""".split()
_ONE = """partial_rotary_factor rotary_pct attention_multiplier embedding_multiplier
residual_multiplier logits_scaling logit_scale scale_emb""".split()
_NONE = """attention_chunk_size attn_logit_softcapping final_logit_softcapping num_experts
kv_sharing_modes no_rope_layers per_layer_config pruned_heads""".split()
NEUTRAL = dict.fromkeys(_OFF, False) | dict.fromkeys(_ONE, 1) | dict.fromkeys(_NONE)
NEUTRAL |= {"tie_last_hidden_states": True}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch.dtype for "bfloat16" or torch.bfloat16; None for "auto" and None."""
    if dtype in (None, "auto"):
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(FLOATS)}, not {dtype!r}")
    return getattr(torch, name)


class _Fixed(dict):
    """Made anew each time it is asked for: a change of it would be lost, so it is refused."""

    def _refuse(self, *_: Any, **__: Any) -> None:
        name = "config.rope_parameters"
        raise TypeError(f"rope_parameters are set as a whole: {name} = {{**{name}, …}}")

    __setitem__ = __delitem__ = update = setdefault = pop = clear = _refuse

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


@checked
class Qwen2Config:
    """Every number a Qwen2 model is built from.

    Args:
        **fields: any field of a released `config.json`, in the spelling of transformers 4 or 5.
            Unknown fields are kept and written back unchanged, but those that would change what
            is computed (`NEUTRAL`) are refused. `num_labels=n` names n labels LABEL_0, LABEL_1, …

    For sliding layers it takes three fields: `use_sliding_window=True`, `sliding_window`, and
    `max_window_layers` below the number of layers.

    Fields that contradict one another raise ValueError, as does an activation other than SiLU. A
    field that looks misspelt is warned of, and so is a window that no layer uses.

    Source: Qwen2 Technical Report, arXiv:2407.10671, section 2.2; transformers' Qwen2Config.
    """

    model_type = "qwen2"
    is_encoder_decoder = False

    # In every released config.json; the defaults are those of transformers' Qwen2Config.
    architectures: list[str] | None = None
    attention_dropout: float = 0.0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    hidden_act: str = "silu"
    hidden_size: int = 4096  # E
    initializer_range: float = 0.02
    intermediate_size: int = 22016  # F
    max_position_embeddings: int = 32768
    max_window_layers: int = 28
    num_attention_heads: int = 32  # H
    num_hidden_layers: int = 32
    num_key_value_heads: int | None = None  # G; None = H, plain multi-head attention
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = 4096  # counts the query itself
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    use_cache: bool = True
    use_sliding_window: bool = False
    vocab_size: int = 151936  # V
    # Written only where they say something that the others do not.
    head_dim: int | None = None  # D; None = E / H
    id2label: dict[int, str] | None = None
    is_causal: bool = True  # False = every token sees every other, as embedding models are made
    label2id: dict[str, int] | None = None
    layer_types: list[str] | None = None  # None = as use_sliding_window and max_window_layers say
    pad_token_id: int | None = None
    problem_type: str | None = None
    rope_scaling: dict[str, Any] | None = None

    def __init__(self, /, **fields: Any):
        self._fill(_read_v5_spelling(fields))
        self.check()
        self._warn_of_slips(fields, cutoff=0.7)

    def __getattr__(self, name: str) -> Any:
        """A field that Qwen2 does not have is read as the others are."""
        if name in (extra := vars(self).get("extra", {})):
            return extra[name]
        hint = did_you_mean(name, FIELDS, "it was not given")
        raise AttributeError(f"this Qwen2Config has no field {name!r}: {hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        """As `update` of one field."""
        self.update({name: value})

    def update(self, changes: dict[str, Any]) -> None:
        """Set fields, all or none. They count as if they had been given, and what follows from them
        is derived anew; if the whole fits (`check`) is asked when a model is built or saved.
        """
        for name in changes:
            if name in ("extra", "_said") or (name not in SET and hasattr(Qwen2Config, name)):
                raise AttributeError(f"{name} of a Qwen2Config is no field that can be set")
        said = {given: getattr(self, given) for given in self._said} | self.extra
        said["layer_types"] = self.layer_types
        if self.layer_types == self._derived_layer_types():  # else given, or changed in place
            del said["layer_types"]
        new = type(self).__new__(type(self))
        new._fill(_changed(said, changes))
        new._warn_of_slips(changes, cutoff=0.7)
        object.__setattr__(self, "__dict__", vars(new))  # at once: other threads may read

    def _fill(self, fields: dict[str, Any]) -> None:
        """Set all fields from those that are said, each looked at by itself."""
        found = fields.pop("model_type", self.model_type)
        if found != self.model_type:
            raise ValueError(f"model_type is {found!r}: only 'qwen2' is read (Qwen2, Qwen2.5, …)")
        num_labels, said = fields.pop("num_labels", None), (*FIELDS, "attn_implementation")
        check_numbers({"num_labels": num_labels}, {"num_labels": LABELS})
        if num_labels is not None and num_labels != len(fields.get("id2label") or ()):
            fields["id2label"] = {i: f"LABEL_{i}" for i in range(num_labels)}
            fields.pop("label2id", None)
        own = vars(self)
        own["_said"] = {name: fields.pop(name) for name in said if name in fields}
        own["extra"] = fields
        for name, value in fields.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise TypeError(f"{name} must be what config.json can hold: {error}") from None
        own.update(self._said)
        own.update({n: x for n, x in fields.items() if hasattr(type(self), n)})  # of a subclass
        own["attn_implementation"] = own.get("attn_implementation") or "sdpa"
        if self.num_key_value_heads is None:
            own["num_key_value_heads"] = self.num_attention_heads
        values = {name: getattr(self, name) for name in FIELDS}
        check_numbers(values, RANGES)
        check_json(values, HINTS)
        one_of("problem_type", self.problem_type, (None, *PROBLEM_TYPES))
        one_of("attn_implementation", self.attn_implementation, ATTENTIONS)
        own["head_dim"] = self.head_dim or self.hidden_size // self.num_attention_heads
        own["layer_types"] = list(self.layer_types or self._derived_layer_types())
        if self.id2label:
            own["label2id"] = self.label2id or {name: i for i, name in self.id2label.items()}

    # -- derived numbers ---------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the saved weights; `torch_dtype` is its name, as config.json has it."""
        return parse_dtype(self.torch_dtype)

    @property
    def window_by_type(self) -> dict[str, int | None]:
        """The window of each attention type the model uses; None = no limit."""
        windows = {FULL: None, SLIDING: self.sliding_window}
        return {kind: windows[kind] for kind in dict.fromkeys(self.layer_types)}

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5 spells them: type, theta, what the type needs."""
        scaling = {key: x for key, x in (self.rope_scaling or {}).items() if x is not None}
        old_name = scaling.pop("type", "default")
        rope = {"rope_type": old_name, "rope_theta": self.rope_theta, **scaling}
        trained = self.extra.get("original_max_position_embeddings")
        if rope["rope_type"] == "yarn" and trained:  # some write it beside, and there it counts
            rope["original_max_position_embeddings"] = trained
        return _Fixed(rope)

    @property
    def num_labels(self) -> int:
        """How many classes a classification head has."""
        return len(self.id2label) if self.id2label else 2

    @property
    def _attn_implementation(self) -> str:  # as trainers ask for it
        return self.attn_implementation

    def get_text_config(self, *_: Any, **__: Any) -> Qwen2Config:
        """Itself: there is no other part, as models have that also see or hear."""
        return self

    # -- reading and writing -----------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The fields as a release spells them, in alphabetical order."""
        fields = {name: getattr(self, name) for name in FIELDS}
        derived = {"is_causal": True, "layer_types": self._derived_layer_types()}
        if self.head_dim * self.num_attention_heads == self.hidden_size:
            derived["head_dim"] = self.head_dim
        for name in OPTIONAL:
            if fields[name] in (None, derived.get(name)):
                del fields[name]
        return plain(dict(sorted({**fields, **self.extra, "model_type": self.model_type}.items())))

    def to_json_string(self) -> str:
        """The text of `config.json`, laid out as the releases lay it out."""
        fields = {name: value for name, value in self.to_dict().items() if value is not None}
        if not self.use_sliding_window and self.sliding_window is None:
            fields["sliding_window"] = None  # a null some releases carry
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, directory: str | os.PathLike[str]) -> Path:
        """Write `config.json`, whole or not at all. Returns its path."""
        return self.to_json_file(Path(directory) / "config.json")

    def to_json_file(self, path: str | os.PathLike[str], use_diff: bool = True) -> Path:
        """The same by the name of the file; `use_diff` changes nothing."""
        from .files.disk import write_whole

        return write_whole(Path(path), self.to_json_string().encode())

    @classmethod
    def from_dict(cls, fields: dict[str, Any], **changes: Any) -> Qwen2Config:
        """A configuration from the parsed `config.json`; `changes` win over it, however spelt."""
        config = cls.__new__(cls)
        config._fill(_changed(fields, changes))
        config.check()
        config._warn_of_slips(changes, cutoff=0.7)
        config._warn_of_slips(set(fields) - set(changes), cutoff=0.9)  # written by a program
        return config

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str], **changes: Any) -> Qwen2Config:
        """Read a `config.json`; ValueError, with file and field, if it is not of a Qwen2 model."""
        from .files.disk import read_json

        fields = read_json(Path(path))
        try:
            return cls.from_dict(fields, **changes)
        except ValueError as error:
            ours = any(name in str(error) for name in changes)  # and so not the file's
            raise ValueError(str(error) if ours else f"{error}; read from {path}") from None

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Qwen2Config:
        """The configuration of a built-in name, a folder, a GGUF file or a hub id; `options` are
        those of `hub.resolve` (revision, token, cache_dir, …) and fields to change.
        """
        from .files.gguf import open_place
        from .hub import resolve, take_options

        place = open_place(resolve(name_or_path, "config", **take_options(options)))
        return cls.from_place(place, **options)

    @classmethod
    def from_place(cls, place: Any, **changes: Any) -> Qwen2Config:
        """`config.json` of a folder, or what a GGUF file says, as `open_place` answers it."""
        if isinstance(place, Path):
            return cls.from_json_file(place / "config.json", **changes)
        from .files.gguf_model import config_fields

        return cls.from_dict(config_fields(place), **changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Qwen2Config) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        return f"Qwen2Config {self.to_json_string()}"

    # -- derived fields and checks -----------------------------------------------------------------

    def _derived_layer_types(self) -> list[str]:
        """Layer i slides iff `use_sliding_window` and `i >= max_window_layers`: the upper ones."""
        slides = self.use_sliding_window and self.sliding_window is not None
        first = self.max_window_layers if slides else self.num_hidden_layers
        return [SLIDING if i >= first else FULL for i in range(self.num_hidden_layers)]

    def check(self) -> None:
        """ValueError where fields contradict one another, or say what Qwen2 does not have."""
        for name, off in NEUTRAL.items():
            if (value := self.extra.get(name)) not in (None, off, {}):
                other = f"{name}={value!r} changes what a model computes"
                raise ValueError(f"{other}, and Qwen2 has no such part: only {off!r} is read")
        E, H, G = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        D, kinds, n, act = self.head_dim, self.layer_types, self.num_hidden_layers, self.hidden_act
        each, window = f"each {FULL!r} or {SLIDING!r}, not {kinds}", self.sliding_window
        slides, uneven = SLIDING in kinds, not self._said.get("head_dim") and E % H
        faults = {
            f"num_attention_heads={H} is no multiple of num_key_value_heads={G}": H % G,
            f"hidden_size={E} is no multiple of num_attention_heads={H}: give head_dim too": uneven,
            f"head_dim ({D}) must be even: rotary embedding turns pairs": D % 2,
            f"hidden_act {act!r}: Qwen2's MLP is SwiGLU, whose activation is 'silu'": act != "silu",
            f"layer_types must be {n} (num_hidden_layers), {each}": (
                len(kinds) != n or set(kinds) - {FULL, SLIDING}
            ),
            "layers slide, so sliding_window must be a number, not None": slides and window is None,
        }
        if fault := next((fault for fault, found in faults.items() if found), ""):
            raise ValueError(fault)
        if slides:
            check_numbers({"sliding_window": window}, {"sliding_window": SIZE})
        elif self.use_sliding_window:
            why = f"layers from max_window_layers={self.max_window_layers} on would, and there are"
            warn_caller(
                f"use_sliding_window is on and no layer slides: {why} {n}, with "
                f"sliding_window={window}"
            )

    def _warn_of_slips(self, names: Iterable[str], cutoff: float) -> None:
        for name in self.extra.keys() & set(names) - {"attention_bias"}:
            longer = any(name.startswith(f"{f}_") or name.endswith(f"_{f}") for f in FIELDS)
            hint = did_you_mean(name, FIELDS, cutoff=cutoff)
            if hint and not longer and not name.endswith("_token_id"):  # mm_hidden_size is no slip
                warn_caller(f"{name} is kept and has no effect; {hint}")


FIELDS = tuple(Qwen2Config.__annotations__)
HINTS = get_type_hints(Qwen2Config)
SET = "attn_implementation _attn_implementation num_labels rope_parameters dtype".split()
SET += FIELDS
OPTIONAL = """head_dim id2label is_causal label2id layer_types pad_token_id problem_type
rope_scaling""".split()
# What a file says and a change of the field on the left makes void.
FOLLOWS = {"id2label": ("num_labels", "label2id")}
FOLLOWS |= dict.fromkeys(("use_sliding_window", "max_window_layers"), ("layer_types",))


def _changed(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What is said when `changes` come over `fields`, however either is spelt."""
    old, new = _read_v5_spelling(fields), _read_v5_spelling(changes)
    for name in new:
        for follows in FOLLOWS.get(name, ()):
            old.pop(follows, None)
    if isinstance(count := new.get("num_hidden_layers"), int) and old.get("layer_types"):
        old["layer_types"] = old["layer_types"][:count]
    return old | new


def _read_v5_spelling(given: dict[str, Any]) -> dict[str, Any]:
    """A copy in Python's own types, with transformers 5's `dtype` and `rope_parameters` as the
    released fields.
    """
    fields = plain(given)
    for name, ours in (("dtype", "torch_dtype"), ("_attn_implementation", "attn_implementation")):
        if name in fields:
            fields[ours] = fields.pop(name)
    if str(fields.get("torch_dtype")).startswith("torch."):
        fields["torch_dtype"] = str(fields["torch_dtype"]).removeprefix("torch.")
    if isinstance(labels := fields.get("id2label"), dict):  # the keys of a JSON object are strings
        fields["id2label"] = {int(i) if str(i).isdecimal() else i: n for i, n in labels.items()}
    if isinstance(labels := fields.get("label2id"), dict):
        fields["label2id"] = {n: int(i) if str(i).isdecimal() else i for n, i in labels.items()}
    kinds = dict.fromkeys(("rope_parameters", "rope_scaling"), dict[str, Any] | None)
    check_json(fields, kinds | {"self": None})  # a name that no reader could pass on
    rope = dict(fields.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        fields["rope_theta"] = rope.pop("rope_theta")
    if rope:
        fields["rope_scaling"] = rope
    scaling = fields.get("rope_scaling")
    if scaling and scaling.get("rope_type", scaling.get("type", "default")) == "default":
        fields["rope_scaling"] = None
    return fields


# -- the releases ----------------------------------------------------------------------------------

FACTS = Path(__file__).with_name("released.json")  # what is published about each release
_PUBLISHED = {
    name.removeprefix("Qwen/"): facts["config"]
    for name, facts in json.loads(FACTS.read_text(encoding="utf-8"))["models"].items()
}
RELEASES = tuple(name for name in _PUBLISHED if name.startswith("Qwen2"))


@checked
def released_config(name: str) -> Qwen2Config:
    """The configuration of a release, without the network: "Qwen2-0.5B", "Qwen2.5-7B-Instruct", …
    Another name is a ValueError that tells the known ones.
    """
    name = name.removeprefix("Qwen/")
    if name not in RELEASES:
        hint = did_you_mean(name, RELEASES, f"known are {', '.join(RELEASES)}", cutoff=0.8)
        raise ValueError(f"no release is called {name!r}: {hint}")
    return Qwen2Config.from_dict(copy.deepcopy(_PUBLISHED[name]))
