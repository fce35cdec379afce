"""The command line meets what people and machines really send: an answer or a sentence."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen2_edu import cli
from qwen2_edu.cli import app, safe

ROOT = Path(__file__).resolve().parents[2]
BRIEF = ("--greedy", "--max-new-tokens", "4")


def command(*arguments, **options):
    line = [sys.executable, "-m", "qwen2_edu", *arguments]
    return subprocess.run(line, capture_output=True, cwd=ROOT, timeout=120, **options)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_bad_bytes_end_no_chat(locale):
    environment = {**os.environ, "LC_ALL": locale}
    done = command("chat", *BRIEF, input=b"hi\n\xff\xfe\nhi\n", env=environment)
    answers = done.stdout.decode().splitlines()
    assert done.returncode == 0 and len(answers) == 2 and all(answers)
    assert done.stderr == b"Error: stdin is not UTF-8\n"


def test_an_error_of_a_turn_ends_no_chat(monkeypatch):
    from qwen2_edu import ChatSession

    def stream(self, question):
        if question == "bad":
            raise ValueError("the template refuses it")
        yield question

    monkeypatch.setattr(ChatSession, "stream", stream)
    result = CliRunner().invoke(app, ["chat"], input="one\nbad\ntwo\n")
    assert result.stdout.split() == ["one", "two"] and result.exit_code == 0
    assert result.stderr == "Error: the template refuses it\n"


@pytest.mark.parametrize("arguments", [("chat",), ("generate", "-"), ("tokenize",)])
def test_closed_stdin_is_a_sentence(monkeypatch, arguments):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="stdin is closed"):
        cli.read_stdin(one_line=arguments == ("chat",))


def test_a_width_of_nothing_shows_the_table(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert "7,615,616,512" in CliRunner().invoke(app, ["info", "Qwen2-7B"]).stdout


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_a_seed_beyond_64_bits(seed):
    result = CliRunner().invoke(app, ["generate", "x", "--sample", f"--seed={seed}"])
    assert result.exit_code == 1 and result.stderr.startswith("Error: seed must be an integer in")
    assert result.stderr.count("\n") == 1


def test_the_largest_seeds_draw():
    for seed in (2**64 - 1, -(2**63)):
        call = ["generate", "x", "--sample", "--max-new-tokens=2", f"--seed={seed}"]
        assert CliRunner().invoke(app, call).exit_code == 0


@pytest.mark.parametrize("moment", ["import torch", "import typer"])
def test_ctrl_c_while_it_is_imported(tmp_path, moment):
    """A module of that name that waits stands in for one that takes long to import."""
    name = moment.split()[1]
    (tmp_path / f"{name}.py").write_text("print('here', flush=True)\nimport time\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    line = [sys.executable, "-m", "qwen2_edu", "info"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "text": True}
    # A child of what runs in the background would hear nothing of Ctrl-C.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(line, cwd=tmp_path, preexec_fn=heard, **pipes) as process:
        assert process.stdout.readline() == "here\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "Interrupted\n")


STEERING = ["\x1b[2J", "\r", "\x08", "\x9b", "\u202e", "\u2066", "\u2028", "\x00", "\x7f", "\ud800"]


@pytest.mark.parametrize("text", STEERING)
def test_what_steers_a_terminal_is_escaped(text):
    assert safe(f"a{text}b").startswith("a\\") and safe(f"a{text}b").endswith("b")
    assert safe(f"a{text}b").isprintable()


def test_what_is_written_stays_as_it_is():
    for text in ("né 好\n\t", "👩‍💻", "می‌خواهم", "שלום", "a\\x1b"):
        assert safe(text) == text


def test_names_and_answers_are_shown_escaped(monkeypatch, tmp_path):
    folder = tmp_path / "a\x1b[31mb\u202e"
    folder.mkdir()
    result = CliRunner().invoke(app, ["info", str(folder)])
    assert result.exit_code == 1 and "\x1b" not in result.stderr and "\\x1b[31m" in result.stderr
    monkeypatch.setattr(cli.generation, "stream", lambda *_, **__: iter(["a\x1b[2J", "\u202eb\n"]))
    result = CliRunner().invoke(app, ["generate", "x"])
    assert result.stdout == "a\\x1b[2J\\u202eb\n\n"
