"""The numbers that fix a Qwen2 model, read from and written to a released `config.json`.

A release spells its fields as transformers 4 did (`rope_theta`, `rope_scaling`, `torch_dtype`);
transformers 5 writes `rope_parameters` and `dtype`. Both are read. The released spelling is
written, which both versions open.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from .checks import did_you_mean, write_whole
from .hub import resolve

FULL, SLIDING = "full_attention", "sliding_attention"

# Fields that stand in every released config.json, with the defaults of transformers' Qwen2Config.
FIELDS: dict[str, Any] = {
    "architectures": None,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    "hidden_size": 4096,  # E
    "initializer_range": 0.02,
    "intermediate_size": 22016,  # F
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 32,  # H
    "num_hidden_layers": 32,
    "num_key_value_heads": None,  # G; None = H, plain multi-head attention
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,  # counts the query itself
    "tie_word_embeddings": False,
    "torch_dtype": None,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,  # V
}
# Fields written only when they say something the others do not.
OPTIONAL = "head_dim id2label label2id layer_types pad_token_id problem_type rope_scaling".split()
SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads max_position_embeddings"
).split()
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
BACKENDS = ("sdpa", "eager")


class Qwen2Config:
    """Every number a Qwen2 model is built from.

    Args:
        **fields: any field of a released `config.json`, in the spelling of transformers 4 or 5.
            Unknown fields are kept and written back unchanged. `num_labels=n` names n labels
            LABEL_0, LABEL_1, …

    For sliding layers it takes three fields: `use_sliding_window=True`, `sliding_window`, and
    `max_window_layers` below the number of layers.

    Raises:
        ValueError: fields that contradict one another, or an activation other than SiLU.

    Warns:
        UserWarning: a field that looks misspelt, or a window that no layer uses.

    Source: Qwen2 Technical Report, arXiv:2407.10671, section 2.2; transformers' Qwen2Config.
    """

    model_type = "qwen2"

    def __init__(self, **fields: Any):
        fields = dict(fields)
        found = fields.pop("model_type", self.model_type)
        if found != self.model_type:
            raise ValueError(
                f"this is the configuration of a {found!r} model, not of {self.model_type!r}; "
                "qwen2_edu reads Qwen2, Qwen2.5 and others whose config.json has model_type 'qwen2'"
            )
        num_labels = fields.pop("num_labels", None)
        self.attn_implementation: str = fields.pop("attn_implementation", None) or "sdpa"
        _read_v5_spelling(fields)
        for name, default in {**FIELDS, **dict.fromkeys(OPTIONAL)}.items():
            setattr(self, name, fields.pop(name, default))
        self.extra: dict[str, Any] = fields
        if self.torch_dtype is not None:
            self.torch_dtype = str(self.torch_dtype).removeprefix("torch.")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._check_sizes()
        self.head_dim: int = self.head_dim or self._derived_head_dim()  # D
        self.layer_types: list[str] = list(self.layer_types or self._derived_layer_types())
        self._set_labels(num_labels)
        self._check_kinds()
        self._warn_of_slips()

    # -- derived numbers ---------------------------------------------------------------------------

    @property
    def dtype(self) -> str | None:
        """The dtype of the saved weights, such as "bfloat16": transformers 5 calls it so."""
        return self.torch_dtype

    @property
    def window_by_type(self) -> dict[str, int | None]:
        """The window of each attention type the model uses; None = no limit."""
        windows = {FULL: None, SLIDING: self.sliding_window}
        return {kind: windows[kind] for kind in dict.fromkeys(self.layer_types)}

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5 spells them: type, theta, what the type needs."""
        scaling = dict(self.rope_scaling or {})
        old_name = scaling.pop("type", "default")
        return {"rope_type": old_name, "rope_theta": self.rope_theta, **scaling}

    @property
    def num_labels(self) -> int:
        """How many classes a classification head has."""
        return len(self.id2label) if self.id2label else 2

    # -- reading and writing -----------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The fields as a release spells them, in alphabetical order."""
        fields = {name: getattr(self, name) for name in (*FIELDS, *OPTIONAL)}
        derived = {"head_dim": self._derived_head_dim(), "layer_types": self._derived_layer_types()}
        for name in OPTIONAL:
            if fields[name] in (None, derived.get(name)):
                del fields[name]
        return dict(sorted({**fields, **self.extra, "model_type": self.model_type}.items()))

    def to_json_string(self) -> str:
        """The text of `config.json`, laid out as the releases lay it out."""
        fields = {name: value for name, value in self.to_dict().items() if value is not None}
        if not self.use_sliding_window and self.sliding_window is None:
            fields["sliding_window"] = None  # a null some releases carry
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, directory: str | os.PathLike[str]) -> Path:
        """Write `config.json`, first under a temporary name. Returns its path."""
        return write_whole(Path(directory) / "config.json", self.to_json_string().encode())

    @classmethod
    def from_dict(cls, fields: dict[str, Any], **changes: Any) -> Qwen2Config:
        """A configuration from the parsed `config.json`; `changes` win over it."""
        return cls(**{**fields, **changes})

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Qwen2Config:
        """Read `config.json` of a built-in name, a folder or a hub id. `changes` replace fields.

        Raises:
            FileNotFoundError: no such folder or no `config.json` in it.
            ValueError: the file is not a JSON object, or not of a Qwen2 model.
        """
        folder = resolve(
            name_or_path,
            "config",
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: a model folder holds config.json beside its weights"
            )
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # bad JSON, bad UTF-8
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{path} holds a {type(fields).__name__}, not a JSON object of fields")
        return cls.from_dict(fields, **changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Qwen2Config) and self.to_dict() == other.to_dict()

    __hash__ = None  # a configuration may be changed

    def __repr__(self) -> str:
        return f"Qwen2Config {self.to_json_string()}"

    # -- derived fields and checks -----------------------------------------------------------------

    def _derived_head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def _derived_layer_types(self) -> list[str]:
        """Layer i slides iff `use_sliding_window` and `i >= max_window_layers`: the upper ones."""
        first = self.max_window_layers if self.use_sliding_window else self.num_hidden_layers
        return [SLIDING if i >= first else FULL for i in range(self.num_hidden_layers)]

    def _set_labels(self, num_labels: int | None) -> None:
        if num_labels is not None and (not self.id2label or len(self.id2label) != num_labels):
            self.id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
            self.label2id = None
        if self.id2label:
            # The keys of a JSON object are strings.
            self.id2label = {int(i): name for i, name in self.id2label.items()}
            self.label2id = self.label2id or {name: i for i, name in self.id2label.items()}

    def _check_sizes(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}): every key head serves the same "
                "number of query heads"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}), or head_dim must be given"
            )

    def _warn_of_slips(self) -> None:
        for name in self.extra:
            if hint := did_you_mean(name, (*FIELDS, *OPTIONAL), cutoff=0.7):
                warnings.warn(f"{name} is kept and has no effect; {hint}", stacklevel=3)
        if self.use_sliding_window and SLIDING not in self.layer_types:
            warnings.warn(
                f"use_sliding_window is on and no layer slides: layers from max_window_layers="
                f"{self.max_window_layers} on would, and there are {self.num_hidden_layers}",
                stacklevel=3,
            )

    def _check_kinds(self) -> None:
        for name in ("tie_word_embeddings", "use_sliding_window", "use_cache"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name in ("rope_theta", "rms_norm_eps"):
            if not (isinstance(getattr(self, name), (int, float)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)!r}")
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be even: rotary embedding turns pairs"
            )
        if self.hidden_act != "silu":
            raise ValueError(
                f"hidden_act {self.hidden_act!r}: Qwen2's MLP is SwiGLU, whose activation is 'silu'"
            )
        if len(self.layer_types) != self.num_hidden_layers or set(self.layer_types) - {
            FULL,
            SLIDING,
        }:
            raise ValueError(
                f"layer_types must hold {self.num_hidden_layers} entries (num_hidden_layers), each "
                f"{FULL!r} or {SLIDING!r}, not {self.layer_types}"
            )
        if SLIDING in self.layer_types and (
            not isinstance(self.sliding_window, int) or self.sliding_window < 1
        ):
            raise ValueError(
                "layers slide, so sliding_window must be a positive integer, "
                f"not {self.sliding_window!r}"
            )
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ValueError(f"attention_dropout must be in [0, 1), not {self.attention_dropout}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type must be one of {PROBLEM_TYPES}, not {self.problem_type!r}"
            )
        if self.attn_implementation not in BACKENDS:
            raise ValueError(
                f"attn_implementation must be one of {BACKENDS}, not {self.attn_implementation!r}"
            )


def _read_v5_spelling(fields: dict[str, Any]) -> None:
    """Turn transformers 5's `dtype` and `rope_parameters` into the released fields, in place."""
    if "dtype" in fields:
        fields["torch_dtype"] = fields.pop("dtype")
    rope = dict(fields.pop("rope_parameters", None) or {})
    if "rope_theta" in rope:
        fields["rope_theta"] = rope.pop("rope_theta")
    if rope:
        fields["rope_scaling"] = rope
    scaling = fields.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ValueError(
            f"rope_scaling must be a dict such as {{'rope_type': 'linear', 'factor': 2.0}}, not "
            f"{scaling!r}"
        )
    if scaling.get("rope_type", scaling.get("type", "default")) == "default":
        fields["rope_scaling"] = None


# -- the releases ----------------------------------------------------------------------------------

_SIZES = {  # E, F, layers, H, G, V, tied head
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}
_RELEASES = {  # context, window, max_window_layers, epsilon, saved by transformers
    "Qwen2-0.5B": (131072, 131072, 24, 1e-6, "4.40.1"),
    "Qwen2-1.5B": (131072, 131072, 28, 1e-6, "4.40.1"),
    "Qwen2-7B": (131072, 131072, 28, 1e-6, "4.37.2"),
    "Qwen2-72B": (131072, 131072, 80, 1e-5, "4.40.1"),
    "Qwen2-0.5B-Instruct": (32768, 32768, 24, 1e-6, "4.40.1"),
    "Qwen2-1.5B-Instruct": (32768, 32768, 28, 1e-6, "4.40.1"),
    "Qwen2-7B-Instruct": (32768, 131072, 28, 1e-6, "4.41.2"),
    "Qwen2-72B-Instruct": (32768, 131072, 80, 1e-6, "4.40.1"),
    "Qwen2.5-0.5B": (32768, 32768, 24, 1e-6, "4.40.1"),
    "Qwen2.5-1.5B": (131072, 131072, 28, 1e-6, "4.40.1"),
    "Qwen2.5-3B": (32768, 32768, 36, 1e-6, "4.40.1"),
    "Qwen2.5-7B": (131072, 131072, 28, 1e-6, "4.40.1"),
    "Qwen2.5-14B": (131072, 131072, 48, 1e-5, "4.43.1"),
    "Qwen2.5-32B": (131072, 131072, 64, 1e-5, "4.43.1"),
    "Qwen2.5-72B": (131072, 131072, 80, 1e-5, "4.43.1"),
    "Qwen2.5-0.5B-Instruct": (32768, 32768, 21, 1e-6, "4.43.1"),
    "Qwen2.5-1.5B-Instruct": (32768, 32768, 21, 1e-6, "4.43.1"),
    "Qwen2.5-3B-Instruct": (32768, 32768, 70, 1e-6, "4.43.1"),
    "Qwen2.5-7B-Instruct": (32768, 131072, 28, 1e-6, "4.43.1"),
    "Qwen2.5-14B-Instruct": (32768, 131072, 70, 1e-6, "4.43.1"),
    "Qwen2.5-32B-Instruct": (32768, 131072, 70, 1e-6, "4.43.1"),
    "Qwen2.5-72B-Instruct": (32768, 131072, 70, 1e-6, "4.43.1"),
}
_WITH_MROPE_FIELD = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-3B", "Qwen2.5-7B")


def released_config(name: str) -> Qwen2Config:
    """The configuration of a release without the network: "Qwen2-0.5B", "Qwen2.5-7B-Instruct", …

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    name = name.removeprefix("Qwen/")
    if name not in _RELEASES:
        raise ValueError(f"no release is called {name!r}; known: {', '.join(_RELEASES)}")
    context, window, first_sliding, epsilon, version = _RELEASES[name]
    width, mlp_width, layers, heads, key_heads, vocabulary, tied = _SIZES[name.split("-")[1]]
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        bos_token_id=151643,
        eos_token_id=151645 if name.endswith("-Instruct") else 151643,
        hidden_size=width,
        intermediate_size=mlp_width,
        max_position_embeddings=context,
        max_window_layers=first_sliding,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        num_key_value_heads=key_heads,
        rms_norm_eps=epsilon,
        rope_theta=1000000.0,
        sliding_window=window,
        tie_word_embeddings=tied,
        torch_dtype="bfloat16",
        transformers_version=version,
        vocab_size=vocabulary,
        **({"use_mrope": False} if name in _WITH_MROPE_FIELD else {}),
    )


RELEASES = tuple(_RELEASES)
