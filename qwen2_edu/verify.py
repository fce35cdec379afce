"""Is this checkpoint, read by this package, the model that was released?

    python -m qwen2_edu verify Qwen/Qwen2-0.5B

compares five things with published facts (`released.json`): the bytes of the weight files, the
config, the number of parameters, logits, and greedy text. Asked for and not possible means
failed: a fact that nobody recorded, a file that is not there, a closed network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .config import FACTS, Qwen2Config
from .files.checksums import file_hash
from .files.weights import find_weights
from .hub import resolve


class Check(NamedTuple):
    """One line of the verdict."""

    name: str
    ok: bool
    detail: str


class Failed(Exception):
    """A check that did not pass, with the reason."""


def checks(
    name_or_path: str | os.PathLike[str],
    *,
    goldens: str | os.PathLike[str] | None = None,
    known_as: str | None = None,
    device: str = "cpu",
    **hub: Any,
) -> Iterator[Check]:
    """Run the checks one by one, each answered as soon as it is known. Nothing raises: the model is
    the released one iff all are ok.

    Args:
        name_or_path: a hub id or a folder.
        goldens: a file of facts; None = the published ones that come with the package.
        known_as: which entry of it to compare with; None = the one whose name, or the part of it
            after the slash, is `name_or_path` or its last part. The owner may be left out.
        device: where to compute, in float32.
        **hub: revision, token, cache_dir, local_files_only, as in `hub.resolve`.
    """
    try:
        resolve(name_or_path, "config", **hub)  # is there such a model? Gigabytes come later
        facts = _facts(str(name_or_path), Path(goldens or FACTS), known_as)
        folder = resolve(name_or_path, "model", **hub)
    except Exception as error:  # whatever it is, the verdict is the same
        yield Check("found", False, _sentence(error))
        return

    @cache
    def model():
        from .model import Qwen2ForCausalLM

        return Qwen2ForCausalLM.from_pretrained(folder, dtype="float32", device=device)

    @cache
    def tokenizer():
        from .tokenizer import Qwen2TokenizerFast

        return Qwen2TokenizerFast.from_pretrained(resolve(name_or_path, "tokenizer", **hub))

    steps: dict[str, tuple[str, Callable[[Any], str]]] = {
        "files": ("files", lambda recorded: _files(folder, recorded)),
        "config": ("config", lambda recorded: _config(folder, recorded)),
        "parameters": ("num_parameters", lambda recorded: _parameters(model(), recorded)),
        "logits": ("logits", lambda recorded: _logits(model(), recorded)),
        "greedy": ("greedy", lambda recorded: _greedy(model(), tokenizer, recorded)),
    }
    for name, (key, check) in steps.items():
        try:
            if not facts.get(key):
                raise Failed("nobody recorded this for the model, so it cannot be verified")
            yield Check(name, True, check(facts[key]))
        except Exception as error:
            yield Check(name, False, _sentence(error))


def _sentence(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if isinstance(error, (Failed, ValueError, OSError)) else f"{error!r}"


def _facts(name: str, path: Path, known_as: str | None) -> dict[str, Any]:
    models = json.loads(path.read_text(encoding="utf-8"))["models"]
    wanted = known_as or name.rstrip("/\\")
    last = known_as or Path(wanted).name  # an owner that was asked for is not ignored
    for known in (wanted, *(k for k in models if k.split("/")[-1] == last)):
        if known in models:
            return models[known]
    raise Failed(f"no facts are recorded for {wanted!r}; there are some for: {', '.join(models)}")


# -- the checks: each answers what it found, or raises Failed --------------------------------------


def _files(folder: Path, recorded: dict[str, dict[str, Any]]) -> str:
    for name, fact in recorded.items():
        if not (folder / name).is_file():
            raise Failed(f"{folder / name} is not there")
        actual = file_hash(folder / name)
        if actual != fact["sha256"]:
            raise Failed(f"{name}: sha256 is {actual}, published is {fact['sha256']}")
    used = {path.name for path in find_weights(folder)}
    if used != set(recorded):
        raise Failed(f"weights are read from {sorted(used)}, published are {sorted(recorded)}")
    return ", ".join(f"{name} has sha256 {fact['sha256']}" for name, fact in recorded.items())


def _config(folder: Path, recorded: dict[str, Any]) -> str:
    ours = Qwen2Config.from_json_file(folder / "config.json")
    theirs = Qwen2Config.from_dict(recorded)
    a, b = ours.to_dict(), theirs.to_dict()
    names = {*a, *b} - {*ours.extra, *theirs.extra}  # those mean nothing to the model
    differ = [name for name in sorted(names) if a.get(name) != b.get(name)]
    if differ:
        said = (f"{name} is {a.get(name)!r}, published is {b.get(name)!r}" for name in differ)
        raise Failed("; ".join(said))
    return f"all {len(names)} fields are as published"


def _parameters(model: Any, recorded: int) -> str:
    actual = model.num_parameters()
    if actual != recorded:
        raise Failed(f"{actual:,} parameters, published are {recorded:,}")
    return f"{actual:,}"


@torch.no_grad()
def _logits(model: Any, recorded: list[dict[str, Any]]) -> str:
    found = []
    for fact in recorded:
        logits = model(torch.tensor([fact["input_ids"]], device=model.device)).logits[0]  # (T, V)
        reduced = {"mean over the vocabulary": logits.mean(-1), "first position": logits[0]}
        expected = torch.tensor(fact["expected"])
        actual = reduced[fact["what"]][: len(expected)].cpu()
        error = (actual - expected).abs().max().item()
        said = f"{fact['what']}: off by {error:.1e} at most, allowed {fact['tolerance']:.0e}"
        if not error <= fact["tolerance"]:  # so that NaN fails
            raise Failed(said)
        found.append(said)
    return "; ".join(found)


def _greedy(model: Any, tokenizer: Callable[[], Any], recorded: list[dict[str, Any]]) -> str:
    found = []
    for fact in recorded:
        ids = fact["input_ids"] + fact.get("then", []) * fact.get("times", 0)
        expected = fact.get("new_ids") or fact["ends_with"]
        steps = fact.get("max_new_tokens", len(expected))
        new = _continue(model, ids, steps)[-len(expected) :]
        if new != expected:
            raise Failed(f"after {ids[:8]}… come {new}, published are {expected}")
        if "text" in fact:
            encoded = tokenizer().encode(fact["prompt"])
            text = tokenizer().decode(ids + new)
            if (encoded, text) != (ids, fact["text"]):
                raise Failed(f"{fact['prompt']!r} is {encoded}, {text!r}; published: {fact}")
        found.append(repr(fact["text"]) if "text" in fact else f"{len(ids)} tokens, then {new}")
    return "; ".join(found)


def _continue(model: Any, ids: list[int], steps: int) -> list[int]:
    """Purely greedy: an instruct model's own settings would add a repetition penalty."""
    prompt = torch.tensor([ids], device=model.device)
    options = {"do_sample": False, "repetition_penalty": 1.0, "num_beams": 1}
    return model.generate(prompt, max_new_tokens=steps, **options)[0, len(ids) :].tolist()
