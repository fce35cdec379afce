"""What README.md shows runs, prints what it says, and names things that exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import qwen2_edu
from qwen2_edu.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- needs the ([a-z ]+) -->\n)?```python\n(.*?)```", README, re.DOTALL)
OFFLINE = [code for needs, code in BLOCKS if not needs]
WITH_HUB = [code for needs, code in BLOCKS if needs == "hub"]
WITH_RELEASED = [code for needs, code in BLOCKS if needs == "released weights"]
COMMANDS = re.findall(r"^\.venv/bin/python -m qwen2_edu (.+)$", README, re.MULTILINE)


# The blocks after the first go on from its names.
@pytest.mark.parametrize("code", [OFFLINE[0], *(OFFLINE[0] + more for more in OFFLINE[1:])])
def test_offline_block_prints_what_it_says(code, tmp_path, monkeypatch):
    promised = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert promised and len(promised) == code.count("print("), "every print says what it prints"
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == promised


@pytest.mark.released
@pytest.mark.parametrize("code", WITH_RELEASED)
def test_block_with_the_released_weights_prints_what_it_says(code, tmp_path, monkeypatch):
    test_offline_block_prints_what_it_says(code, tmp_path, monkeypatch)


@pytest.mark.parametrize("code", WITH_HUB)
def test_block_for_the_hub_is_python_and_its_names_exist(code):
    compile(code, "README.md", "exec")
    (names,) = re.findall(r"^from qwen2_edu import (.+)$", code, re.MULTILINE)
    for name in names.split(", "):
        assert hasattr(qwen2_edu, name)


def test_there_is_a_block_of_each_kind():
    assert (len(OFFLINE), len(WITH_HUB), len(WITH_RELEASED)) == (7, 1, 1)
    lines = [line for line in OFFLINE[0].splitlines() if line.strip()]
    assert len(lines) <= 12, "the ten-line use has grown"
    assert all(len(more.splitlines()) <= 7 for more in OFFLINE[1:]), "these are glimpses"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_and_commands_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|txt|toml|yml|ipynb)))`", text)
    for path in paths:
        if path in ("vocab.json", "merges.txt", "tokenizer.json", "config.json"):
            continue  # files of a checkpoint, not of this project
        assert (ROOT / path).exists(), f"{name} names {path}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    commands = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE)
    assert commands
    for line_start, quoted in commands:
        assert (line_start or quoted) in targets, f"{name} names make {line_start or quoted}"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines_run(command):
    result = CliRunner().invoke(app, shlex.split(command, comments=True))
    assert result.exit_code == 0 and result.stdout


def test_every_file_of_the_package_has_its_place_in_the_tree():
    assert COMMANDS, "no command line is shown"
    tree = README.split("## Where things live")[1].split("```")[1]
    named, folder = set(), ""
    for line in tree.splitlines()[2:]:
        indent, name = len(line) - len(line.lstrip()), line.split()[0] if line.strip() else ""
        if indent == 2 and name.endswith("/"):
            folder = name
        elif "." in name:
            named.add(name if indent == 2 else folder + name)
    package = ROOT / "qwen2_edu"
    files = {path.name for path in package.iterdir() if path.is_file()}
    for door in ("text", "decoding", "files"):
        files |= {f"{door}/{path.name}" for path in (package / door).glob("[!_]*.py")}
    files |= {f"kernels/{path.name}" for path in (package / "kernels").glob("[!_]*.*")}
    assert named == files
