"""The operators of a fast step: for a GPU those of gpu.py, for a CPU the C++ of gemv.cpp, on dot.h,
which are `torch.ops.qwen2_edu.*`, built by this machine on first use.

Building takes some ten seconds, once: the library is kept beside torch's own extensions (or where
TORCH_EXTENSIONS_DIR says) under a name that says what it was made from. It is built in a folder of
its own and moved into place when it is whole, so nothing waits for a lock, two processes may build
at once, and what an interrupted build leaves behind is never used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

SOURCES = [Path(__file__).with_name(name) for name in ("gemv.cpp", "dot.h")]
FLAGS = "-O3 -march=native -ffast-math -fopenmp -std=c++20 -fPIC".split()
FORMATS = (torch.float32, torch.bfloat16)  # of activations, and of weights that are not quantised


def operators(device: str) -> Any:
    """`linear`, `block`, and `rotate_` ("cpu") or `keep_` ("cuda"), once `why_not` answers ""."""
    if device == "cuda":
        from . import gpu  # Triton, which not every machine has

        return gpu
    ops = torch.ops.qwen2_edu
    names = ("linear", "block", "rotate_")
    return SimpleNamespace(**{name: getattr(ops, name).default for name in names})


@cache
def why_not(device: str = "cpu") -> str:
    """Make the operators ready; answer "" or, in a sentence, why this machine has none."""
    if device == "cuda":
        return "" if importlib.util.find_spec("triton") else "no kernels: Triton is not installed"
    try:
        torch.ops.load_library(_library())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = str(error).strip() or type(error).__name__
        return f"no C++ kernels: {said.splitlines()[-1]}"
    # For what compiles, which runs on tensors without numbers; a whole step is never compiled.
    shape = lambda x, ws, *_: x.new_empty(*x.shape[:-1], sum(len(w) for w in ws))  # noqa: E731
    torch.library.register_fake("qwen2_edu::linear", shape)
    return ""


def home() -> Path:
    """Where built libraries are kept."""
    kept = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    return Path(kept) / "qwen2_edu"


def _library() -> Path:
    """The library for this source, torch and processor, built if it is not there whole."""
    made_from = ([path.read_bytes() for path in SOURCES], FLAGS, torch.__version__, _processor())
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]
    for path in home().glob(f"{key}-*.so"):  # the name ends in a hash of the file
        if path.stem.endswith(_digest(path)):
            return path
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home()) as folder:  # `replace` needs one file system
        built = _build(Path(folder))
        return built.replace(home() / f"{key}-{_digest(built)}.so")


def _build(folder: Path) -> Path:
    """Compile and link in two steps: linked with -ffast-math, a library would make the whole
    process flush small numbers to 0.
    """
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("there is no C++ compiler on the PATH (c++, g++ or clang++)")
    root, part, built = Path(torch.__file__).parent, folder / "gemv.o", folder / "gemv.so"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    link = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"]
    for command in (
        [compiler, *FLAGS, abi, f"-I{root / 'include'}", "-c", str(SOURCES[0]), "-o", str(part)],
        [compiler, "-shared", str(part), "-o", str(built), *link],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise OSError(f"{compiler} fails: {(errors or ['it does not say why'])[0]}")
    return built


def _processor() -> str:
    """What -march=native stands for here: a home folder may be shared by different machines."""
    try:
        return re.search(r"(?m)^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, TypeError):
        return platform.processor() + platform.machine()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
