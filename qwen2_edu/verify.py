"""Is this checkpoint, read by this package, the model that was released?

`python -m qwen2_edu verify Qwen/Qwen2-0.5B` compares five things with published facts
(`released.json`): the bytes of the weight files, the config, the number of parameters, logits, and
greedy text. Asked for and not possible means failed: a fact that nobody recorded, no such file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .config import FACTS, Qwen2Config
from .files.checksums import file_hash
from .files.disk import read_json
from .files.weights import find_weights
from .hub import resolve
from .model import Qwen2ForCausalLM
from .tokenizer import Qwen2TokenizerFast


class Check(NamedTuple):
    """One line of the verdict."""

    name: str
    ok: bool
    detail: str


def checks(
    name_or_path: str | os.PathLike[str],
    *,
    goldens: str | os.PathLike[str] | None = None,
    known_as: str | None = None,
    device: str = "cpu",
    **hub: Any,
) -> Iterator[Check]:
    """Run the checks one by one; nothing raises. The model is the released one iff all are ok.

    Args:
        goldens: a file of facts; None = the published ones that come with the package.
        known_as: which entry of it to compare with; None = the one called `name_or_path`, or else
            the one with the same last part, such as "Qwen2-0.5B".
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

    # Both are loaded when a check first needs them. A check yields what it found, or raises.
    model = cache(partial(Qwen2ForCausalLM.from_pretrained, folder, dtype="float32", device=device))
    tokenizer = cache(partial(Qwen2TokenizerFast.from_pretrained, name_or_path, **hub))
    steps = {"files": (_files, folder), "config": (_config, folder)}
    steps |= {"num_parameters": (_parameters, model), "logits": (_logits, model)}
    steps |= {"greedy": (_greedy, model, tokenizer)}
    for fact, (check, *sources) in steps.items():
        name = fact.removeprefix("num_")
        try:
            if not facts.get(fact):
                raise ValueError("nobody recorded this for the model, so it cannot be verified")
            yield Check(name, True, "; ".join(check(*sources, facts[fact])))
        except Exception as error:
            yield Check(name, False, _sentence(error))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, (ValueError, OSError)) and str(error) else repr(error)


def _facts(name: str, path: Path, known_as: str | None) -> dict[str, Any]:
    models = read_json(path)["models"]
    wanted = known_as or name.rstrip("/\\")
    last = known_as or Path(wanted).name  # an owner that was asked for is not ignored
    for known in (wanted, *(k for k in models if k.split("/")[-1] == last)):
        if known in models:
            return models[known]
    raise ValueError(f"no facts are recorded for {wanted!r}; there are for: {', '.join(models)}")


def _files(folder: Path, recorded: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, fact in recorded.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is not there")
        actual = file_hash(folder / name)
        if actual != fact["sha256"]:
            raise ValueError(f"{name}: sha256 is {actual}, published is {fact['sha256']}")
        yield f"{name} has sha256 {actual}"
    used = {path.name for path in find_weights(folder)}
    if used != set(recorded):
        raise ValueError(f"weights are read from {sorted(used)}, published are {sorted(recorded)}")


def _config(folder: Path, recorded: dict[str, Any]) -> Iterator[str]:
    ours = Qwen2Config.from_json_file(folder / "config.json")
    theirs = Qwen2Config.from_dict(recorded)
    a, b = ours.to_dict(), theirs.to_dict()
    names = {*a, *b} - {*ours.extra, *theirs.extra}  # those mean nothing to the model
    if differ := [name for name in sorted(names) if a.get(name) != b.get(name)]:
        said = (f"{name} is {a.get(name)!r}, published is {b.get(name)!r}" for name in differ)
        raise ValueError("; ".join(said))
    yield f"all {len(names)} fields are as published"


def _parameters(model: Callable[[], Any], recorded: int) -> Iterator[str]:
    actual = model().num_parameters()
    if actual != recorded:
        raise ValueError(f"{actual:,} parameters, published are {recorded:,}")
    yield f"{actual:,}"


@torch.no_grad()
def _logits(model: Callable[[], Any], recorded: list[dict[str, Any]]) -> Iterator[str]:
    for fact in recorded:
        ids = torch.tensor([fact["input_ids"]], device=model().device)  # (1, T)
        logits = model()(ids).logits[0].cpu()  # (T, V)
        reduced = {"mean over the vocabulary": logits.mean(-1), "first position": logits[0]}
        expected = torch.tensor(fact["expected"])
        error = (reduced[fact["what"]][: len(expected)] - expected).abs().max().item()
        said = f"{fact['what']}: off by {error:.1e} at most, allowed {fact['tolerance']:.0e}"
        if not error <= fact["tolerance"]:  # so that NaN fails
            raise ValueError(said)
        yield said


def _greedy(model: Callable, tokenizer: Callable, recorded: list[dict[str, Any]]) -> Iterator[str]:
    # Purely greedy: an instruct model's own settings would add a repetition penalty.
    options = {"do_sample": False, "repetition_penalty": 1.0, "num_beams": 1}
    for fact in recorded:
        ids = fact["input_ids"] + fact.get("then", []) * fact.get("times", 0)
        expected = fact.get("new_ids") or fact["ends_with"]
        options["max_new_tokens"] = fact.get("max_new_tokens", len(expected))
        whole = model().generate(torch.tensor([ids], device=model().device), **options)[0].tolist()
        new = whole[len(ids) :][-len(expected) :]
        if new != expected:
            raise ValueError(f"after {ids[:8]}… come {new}, published are {expected}")
        if "text" in fact:
            encoded, text = tokenizer().encode(fact["prompt"]), tokenizer().decode(ids + new)
            if (encoded, text) != (ids, fact["text"]):
                raise ValueError(f"{fact['prompt']!r} is {encoded}, {text!r}; published: {fact}")
        yield repr(fact["text"]) if "text" in fact else f"{len(ids)} tokens, then {new}"
