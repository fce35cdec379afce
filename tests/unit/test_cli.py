"""The command line: it hands on what was asked, and fails in one sentence."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from qwen2_edu import ChatSession, Qwen2Config, Qwen2ForCausalLM, Qwen2TokenizerFast, cli, costs
from qwen2_edu.bpe import train
from qwen2_edu.cli import app, show_table, show_tokens, visible
from qwen2_edu.files.gguf_model import save_gguf
from qwen2_edu.generation import generate, stream
from qwen2_edu.text.templates import QWEN2_TEMPLATE
from qwen2_edu.verify import Check

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["The quick brown fox jumps over the lazy dog; the dog sleeps on."] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SAMPLING = {
    "max_new_tokens": 12,
    "do_sample": True,
    "temperature": 1.5,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.001,
    "repetition_penalty": 1.2,
    "seed": 7,
    "prompt_lookup_num_tokens": 3,
}
SPELLED = (
    "--max-new-tokens 12 --sample --temperature 1.5 --top-k 40 --top-p 0.95 --min-p 0.001 "
    "--repetition-penalty 1.2 --seed 7 "
    "--prompt-lookup-num-tokens 3"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_config, randomise):
    """A small checkpoint with a tokenizer of its own; it never ends an answer by itself."""
    folder = tmp_path_factory.mktemp("cli") / "small"
    vocab, merges = train(TEXTS, 256 + 20 + len(SPECIAL), SPECIAL)
    tokenizer = Qwen2TokenizerFast(
        vocab,
        merges,
        added_tokens=SPECIAL,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        chat_template=QWEN2_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    changes = {"vocab_size": len(tokenizer), "max_position_embeddings": 10**6}
    special = {"bos_token_id": 276, "eos_token_id": None, "pad_token_id": 276}
    sliding = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 64}
    model = randomise(Qwen2ForCausalLM(small_config(**changes, **special, **sliding)), seed=1)
    with torch.no_grad():  # speaks ASCII, so that every token shows at once
        model.lm_head.weight[94:] *= 0.1
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 9}))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return Qwen2ForCausalLM.from_pretrained(folder), Qwen2TokenizerFast.from_pretrained(folder)


def run(*arguments, stdin=""):
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def output(*arguments, stdin=""):
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def only_a_sentence(said):
    assert said.endswith("\n") and said.count("\n") == 1 and "Traceback" not in said, said


# --- generate


def test_generate_prints_the_answer_that_the_model_gives(folder, loaded):
    model, tokenizer = loaded
    ids = tokenizer("The dog", return_tensors="pt").input_ids
    answer = model.generate(ids)[0, ids.shape[1] :]
    assert len(answer) == 9, "the checkpoint's own settings hold where the call says nothing"
    assert output("generate", "-m", folder, "The dog") == tokenizer.decode(answer) + "\n"


def test_generate_hands_every_setting_on(folder, loaded):
    model, tokenizer = loaded
    ids = tokenizer("The fox", return_tensors="pt").input_ids
    result = run(
        "generate", "-m", folder, "The fox", *SPELLED, "--stop", "qq", "--stop", "zz", "-v"
    )
    expected = "".join(stream(model, tokenizer, ids, **SAMPLING, stop_strings=["qq", "zz"]))
    assert result.stdout == expected + "\n"
    for name, value in {**SAMPLING, "stop_strings": ["qq", "zz"], "num_beams": 1}.items():
        assert f"{name}={value!r}" in result.stderr
    assert "torch.float32 on cpu" in result.stderr
    assert "Warning" not in result.stderr


@pytest.mark.parametrize("how", ["--fast", "--plain"])
def test_generate_with_fewer_bits(folder, how):
    model = Qwen2ForCausalLM.from_pretrained(folder, quantize="int8")
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    ids = tokenizer("The dog", return_tensors="pt").input_ids
    answer = tokenizer.decode(model.generate(ids)[0, ids.shape[1] :])
    assert output("generate", "-m", folder, "The dog", "--quantize", "int8", how) == answer + "\n"


def test_generate_says_nothing_on_stderr_unless_asked(folder):
    assert run("generate", "-m", folder, "The fox", *SPELLED).stderr == ""


def test_generate_stops_at_a_stop_string(folder):
    whole = output("generate", "-m", folder, "The", "--max-new-tokens", 40)
    stop = whole[3:5]
    cut = output("generate", "-m", folder, "The", "--max-new-tokens", 40, "--stop", stop)
    assert len(cut) < len(whole) and stop in cut and cut[:-1] in whole


def test_generate_with_beams(folder, loaded):
    model, tokenizer = loaded
    ids = tokenizer("The fox", return_tensors="pt").input_ids
    best = generate(model, ids, num_beams=3, tokenizer=tokenizer)[0, ids.shape[1] :]
    assert (
        output("generate", "-m", folder, "The fox", "--beams", 3) == tokenizer.decode(best) + "\n"
    )


def test_generate_reads_the_prompt_from_stdin(folder):
    assert output("generate", "-m", folder, "-", stdin="The dog") == output(
        "generate", "-m", folder, "The dog"
    )
    assert output("generate", "-m", folder, "-", stdin=""), (
        "an empty prompt begins with the bos token"
    )


def test_generate_casts_as_asked(folder):
    assert (
        "torch.bfloat16 on cpu"
        in run("generate", "-m", folder, "a", "--dtype=bfloat16", "-v").stderr
    )


def test_setting_without_effect_is_one_line_of_warning(folder):
    result = run("generate", "-m", folder, "The", "--temperature", 0.5)
    assert result.exit_code == 0 and "no effect: temperature=0.5 needs --sample" in result.stderr
    only_a_sentence(result.stderr)


# --- chat


def test_chat_is_a_session(folder, loaded):
    session = ChatSession(*loaded, "Be brief.", **SAMPLING)
    expected = [session.send("Hi."), session.send("Why?"), session.regenerate(temperature=1.5)]
    session.undo()
    expected.append(session.send("And now?"))
    session.reset()
    expected.append(session.send("Hi."))
    assert expected[0] == expected[-1] != expected[1]
    typed = "Hi.\nWhy?\n/again\n\n/undo\nAnd now?\n/reset\nHi.\n/exit\nnever read\n"
    result = run("chat", "-m", folder, "--system", "Be brief.", *SPELLED, stdin=typed)
    assert result.stdout == "".join(answer + "\n" for answer in expected)
    assert (result.exit_code, result.stderr) == (0, "Undone\nReset\n")


def test_chat_reads_a_message_of_several_lines(folder, loaded):
    session = ChatSession(*loaded)
    expected = [
        session.send("A dog.\n\n  Which dog?"),
        session.send('The "fox"'),
        session.send("Hi."),
    ]
    typed = '"""A dog.\n\n  Which dog?"""\n"""\nThe "fox"\n"""\nHi.\n'
    result = run("chat", "-m", folder, stdin=typed)
    assert result.stdout == "".join(answer + "\n" for answer in expected) and result.stderr == ""
    result = run("chat", "-m", folder, stdin='"""The dog\n')
    assert (result.exit_code, result.stdout) == (0, "") and 'no """ at its end' in result.stderr
    only_a_sentence(result.stderr)


def test_chat_leaves_at_the_end_of_its_input(folder):
    assert run("chat", "-m", folder, stdin="").exit_code == 0


@pytest.mark.parametrize(
    "typed, says",
    [("/undo", "nothing was asked yet"), ("/rest", "/undo, /again, /reset and /exit")],
)
def test_chat_explains_what_it_cannot_do_and_goes_on(folder, typed, says):
    result = run("chat", "-m", folder, stdin=f"{typed}\nHi.\n")
    assert result.exit_code == 0 and len(result.stdout) > 1 and says in result.stderr
    only_a_sentence(result.stderr)


def test_chat_without_a_template_is_refused_at_once(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    result = run("chat", "-m", tmp_path)
    assert result.exit_code == 1 and "no chat template" in result.stderr
    only_a_sentence(result.stderr)


# --- tokenize


def test_tokenize_into_a_pipe_is_id_tab_token(goldens):
    text = "你好, Qwen!a\n\t🎉 \\ <|im_end|>"
    lines = output("tokenize", text).splitlines()
    ids, pieces = zip(*(line.split("\t") for line in lines), strict=True)
    assert [int(i) for i in ids[:5]] == [108386, 11, 1207, 16948, 0] and ids[-1] == "151645"
    assert pieces[:5] == ("你好", ",", " Q", "wen", "!") and pieces[-1] == "<|im_end|>"
    spelled = "".join(pieces).encode().decode("unicode_escape").encode("latin-1")
    assert spelled.decode() == text


@pytest.mark.parametrize("stdin", [True, False])
def test_tokenize_prints_ids_alone(stdin):
    text = "你好, Qwen!"
    asked = ("tokenize", "--ids") if stdin else ("tokenize", text, "--ids", "--model", "qwen2")
    assert output(*asked, stdin=text) == "108386 11 1207 16948 0\n"


def test_tokenize_can_read_control_tokens_as_text(folder):
    assert output("tokenize", "<|im_end|>", "--ids") == "151645\n"
    assert output("tokenize", "<|im_end|>", "--ids", "--special") == "151645\n"
    assert output("tokenize", "<|im_end|>", "--ids", "--no-special") == "27 91 318 6213 91 29\n"
    assert output("tokenize", "<|im_end|>", "--ids", "-m", folder) == "278\n"


def test_tokenize_in_colour(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "COLORTERM": "", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    show_tokens([(7, b"a b", False), (8, b"\n", False), (9, b"\xe4", False), (5, b"<|x|>", True)])
    first, second = capsys.readouterr().out.splitlines()
    assert first.count("\x1b[") == 8 and "a·b" in first and "\\n" in first and "7 " in first
    assert "\\xe4" in second and "<|x|>" in second and "\x1b[30;103m<|x|>" in second


@pytest.mark.parametrize(
    "data, text",
    [
        (b" \t\n", " \\t\\n"),
        ("né 好".encode(), "né 好"),
        ("🎉".encode()[:2], "\\xf0\\x9f"),
        (b"\\n", "\\\\n"),
        ("\x1b[2J\u200b".encode(), "\\x1b[2J\\u200b"),
    ],
)
def test_visible_shows_everything_and_acts_on_nothing(data, text):
    assert visible(data) == text


# --- info, download, verify


def test_info_of_a_release_needs_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("info", "Qwen2-7B")
    said = " ".join(result.stdout.split())
    assert "total 7,615,616,512" in said and "non-embedding 6,525,621,760" in said
    assert "weights 30,462.47 MB 15,231.23 MB" in said  # 4 and 2 bytes a number
    assert "28 full layers 114.69 MB 57.34 MB" in said  # 28 * 2 * 4 * 128 * 1000
    assert "layers that slide none" in said
    assert "built-in table" in result.stderr
    assert "For --fast: the kernels are ready" in said
    monkeypatch.setattr(cli.kernels, "why_not", lambda device: f"none for {device}")
    assert "For --fast: none for c" in run("info", "Qwen/Qwen2-7B").stdout


def test_info_of_a_folder_reads_no_weights(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = (folder / "config.json").read_text()
    release = tmp_path / "Qwen2-7B"  # a folder wins over the table of releases
    release.mkdir()
    (release / "config.json").write_text(config)
    result = run("info", "Qwen2-7B")
    said = " ".join(result.stdout.split())
    assert result.exit_code == 0 and result.stderr == ""
    assert "layers that slide 1, 2 their window 64 tokens" in said
    assert "1 full layers 0.13 MB 0.06 MB" in said  # 2 * 2 * 8 * 1000 numbers
    assert "at most, 64 tokens 0.02 MB 0.01 MB" in said  # 2 layers * 2 * 2 * 8 * 64 numbers


def test_table_shows_brackets_as_they_are(capsys):
    show_table(["[a]", "[b]"], [["[c]", "[red]d"]])
    assert capsys.readouterr().out.split() == ["[a]", "[b]", "[c]", "[red]d"]


@pytest.mark.parametrize("tied", [True, False])
def test_costs_add_up(small_config, tied):
    config = small_config(tie_word_embeddings=tied)
    parts = costs.parameters_by_part(config)
    E, F, V, layers, D, H, G = 48, 80, 97, 3, 8, 6, 2
    projections = E * (H + 2 * G) * D + (H + 2 * G) * D + H * D * E
    assert parts == {
        "embedding": V * E,
        "attention": layers * projections,
        "MLP": layers * 3 * E * F,
        "norms": (2 * layers + 1) * E,
        "head": 0 if tied else V * E,
    }


def test_cache_of_sliding_layers_stops_growing(small_config):
    config = small_config(use_sliding_window=True, max_window_layers=2, sliding_window=16)
    per_token = 2 * 2 * 8  # key and value, G heads, width D
    for tokens, kept in [(1, 1), (16, 16), (17, 16), (1000, 16)]:
        found = costs.cache_by_kind(config, tokens)
        assert found == {
            "full_attention": 2 * per_token * tokens,
            "sliding_attention": per_token * kept,
        }
    assert costs.cache_by_kind(Qwen2Config(sliding_window=None), 10)["sliding_attention"] == 0


def test_download_prints_the_folder(folder):
    assert output("download", folder) == f"{folder}\n"


@pytest.mark.parametrize("ok", [True, False])
def test_verify_answers_by_its_exit_code(monkeypatch, ok):
    asked = {}

    def checks(name, **options):
        asked.update(options, name=name)
        yield Check("files", True, "[as published]")
        yield Check("logits", ok, "x" * 200)
        yield Check("greedy", True, "'Hi'")

    monkeypatch.setattr("qwen2_edu.verify.checks", checks)
    result = run("verify", "some/model", "--known-as", "it", "--goldens", "f.json")
    assert asked == {
        "name": "some/model",
        "known_as": "it",
        "goldens": Path("f.json"),
        "device": "cpu",
    }
    assert result.exit_code == (0 if ok else 1)
    first, second, _ = result.stdout.splitlines()
    assert first == "PASS  files       [as published]"
    assert second == f"{'PASS' if ok else 'FAIL'}  logits      " + "x" * 200


def test_verify_of_an_unknown_model_fails(folder):
    result = run("verify", folder)
    assert result.exit_code == 1 and result.stdout.startswith("FAIL  found ")


# --- failures


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        ("", 2, "Missing command"),
        ("speak", 2, "No such command 'speak'"),
        ("generate", 2, "Missing argument 'PROMPT'"),
        ("generate -m FOLDER", 2, "Missing argument 'PROMPT'"),
        ("generate -m FOLDER x --tempo 3", 2, "--tempo"),
        ("generate -m FOLDER x --top-k many", 2, "--top-k"),
        ("generate -m FOLDER x --sample --top-p 7", 1, "top_p must be a number in (0, 1], not 7.0"),
        ("generate -m FOLDER x --sample --temperature 0", 1, "at each step pass --greedy"),
        ("generate -m FOLDER x --max-new-tokens 0", 1, "max_new_tokens must be a positive integer"),
        ("generate -m FOLDER x --dtype int3", 1, "not 'int3'"),
        ("generate -m FOLDER x --device nowhere", 1, "'nowhere' is no device"),
        ("generate -m Qwen3 x", 1, "'Qwen3' is neither"),
        ("generate -m qwen2 x", 1, "tokenizer only"),
        ("generate -m ./nowhere x", 1, "there is no file and no folder './nowhere'"),
        ("generate -m FOLDER x --device meta", 1, "no device 'meta' here"),
        ("generate -m FOLDER x --device xla", 1, "no device 'xla' here"),
        ("generate -m FOLDER x --device cuda:99", 1, "no device 'cuda:99' here"),
        ("generate -m FOLDER x --temperature x", 2, "--temperature"),
        ("generate -m FOLDER x --sample --temperature nan", 1, "temperature must be a number"),
        ("generate -m FOLDER x --max-new-tokens -1", 1, "must be a positive integer, not -1"),
        ("generate -m FOLDER x --max-new-tokens 1.5", 2, "--max-new-tokens"),
        ("generate -m FOLDER x --sample --top-k -1", 1, "top_k must be an integer, 0 or more"),
        ("generate -m FOLDER x --sample --min-p 2", 1, "min_p must be a number in [0, 1]"),
        ("generate -m FOLDER x --repetition-penalty nan", 1, "repetition_penalty must be"),
        ("generate -m FOLDER x --beams 99999999999", 1, "--beams must be an integer in"),
        ("generate -m FOLDER x --beams 2 --greedy --stop a", 1, "do not go with --beams=2"),
        ("generate -m FOLDER x --seed 99999999999999999999", 1, "seed must be an integer in"),
        ("generate -m FOLDER x --seed x", 2, "--seed"),
        ("generate -m FOLDER x --stop", 2, "'--stop' requires an argument"),
        ("generate -m FOLDER x --stop=", 1, "--stop must not be empty"),
        ("generate -m FOLDER x --quantize int3", 1, "one of ['int8', 'int4'], not 'int3'"),
        ("generate -m PACKED x --quantize int4", 1, "is quantised already"),
        ("chat -m FOLDER --max-new-tokens 0", 1, "must be a positive integer, not 0"),
        ("chat -m FOLDER --beams 2", 2, "No such option: --beams"),
        ("tokenize x y", 2, "unexpected extra argument"),
        ("info qwen2", 1, "tokenizer only, no config"),
        ("chat -m nobody/nothing", 1, "downloads are off"),
        ("chat -m FOLDER --sample --temperature -1", 1, "temperature must be a number above 0"),
        ("tokenize x --model ./nowhere", 1, "there is no file and no folder './nowhere'"),
        ("info ./nowhere", 1, "there is no file and no folder './nowhere'"),
        ("info Qwen2-8B", 1, "no release is called 'Qwen2-8B': did you mean Qwen2-7B or"),
        ("info nothing", 1, "'nothing' is neither"),
        ("download FOLDER --revision main", 1, "is local"),
        ("download ./nowhere", 1, "there is no file and no folder './nowhere'"),
    ],
)
def test_failures_are_one_sentence(folder, tmp_path, arguments, code, says):
    places = {"FOLDER": str(folder), "PACKED": str(tmp_path)}
    if "PACKED" in arguments:
        Qwen2ForCausalLM.from_pretrained(folder, quantize="int8").save_pretrained(tmp_path)
        Qwen2TokenizerFast.from_pretrained(folder).save_pretrained(tmp_path)
    result = run(*(places.get(word, word) for word in arguments.split()))
    assert result.exit_code == code and result.stdout == ""
    assert result.stderr.startswith("Error: ") and says in result.stderr
    only_a_sentence(result.stderr)


@pytest.mark.parametrize("command", ["generate -m FOLDER -", "tokenize -", "chat -m FOLDER"])
def test_stdin_that_is_no_text(folder, command):
    arguments = command.replace("FOLDER", str(folder)).split()
    result = run(*arguments, stdin=b"\xff\xfe\n")
    assert result.exit_code == (0 if "chat" in command else 1)
    assert (result.stdout, result.stderr) == ("", "Error: stdin is not UTF-8\n")


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"]])
@pytest.mark.parametrize("fault", ["cut short", "gone", "config"])
def test_unreadable_checkpoint(folder, tmp_path, command, fault):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if fault == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "gone":
        weights.unlink()
    else:
        config.write_text("{")
    result = run(*command, "-m", tmp_path)
    assert result.exit_code == 1
    assert ("config.json" if fault == "config" else "model.safetensors") in result.stderr
    only_a_sentence(result.stderr)


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_trouble_of_the_machine_is_one_sentence(folder, monkeypatch, kind):
    def out_of_memory(*_, **__):
        raise kind("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("qwen2_edu.generation.stream", out_of_memory)
    result = run("generate", "-m", folder, "x")
    assert result.exit_code == 1
    assert result.stderr == "Error: CUDA out of memory. Tried to allocate 2 GiB\n"


def test_our_own_bugs_are_not_hidden(folder, monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr("qwen2_edu.generation.stream", broken)
    assert isinstance(run("generate", "-m", folder, "x").exception, KeyError)


def test_ctrl_c_while_generating(folder, monkeypatch):
    def interrupted(*_, **__):
        yield "abc"
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen2_edu.generation.stream", interrupted)
    result = run("generate", "-m", folder, "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "abc", "Interrupted\n")


# --- real processes


def start(*arguments, **environment):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-m", "qwen2_edu", *map(str, arguments)]

    def mind_ctrl_c():  # which a shell's job in the background, and its children, ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, preexec_fn=mind_ctrl_c, **pipes
    )


@pytest.fixture(scope="module", autouse=True)
def closed_network(tmp_path_factory):
    """Someone who wants to download and cannot; started early, as Python takes its time."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub = f"http://127.0.0.1:{unused.getsockname()[1]}"
    home = str(tmp_path_factory.mktemp("hub"))
    process = start("download", "some/model", HF_HUB_OFFLINE="0", HF_ENDPOINT=hub, HF_HOME=home)
    yield hub, process
    process.kill()
    process.communicate()


def test_ctrl_c_stops_an_answer_and_then_the_chat(folder):
    process = start("chat", "-m", folder, "--max-new-tokens", 900000)
    try:
        process.stdin.write(b"Hi.\n")
        process.stdin.flush()
        said = process.stdout.read(3)  # the answer has begun
        process.send_signal(signal.SIGINT)
        while not said.endswith(b" [stopped]\n"):
            said += process.stdout.read(1) or pytest.fail(f"it ended with {said[-100:]}")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, rest, errors) == (130, b"", b"Interrupted\n")


def test_closed_network_is_one_sentence(closed_network):
    hub, process = closed_network
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and said == b""
    only_a_sentence(errors.decode())
    assert hub in errors.decode() and "'some/model'" in errors.decode()


@pytest.mark.parametrize(
    ("stored", "best", "chosen"),
    [
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),  # its numbers would be rounded
        ("gguf", "bfloat16", "bfloat16"),  # those of a GGUF have few bits
        ("gguf", "float32", "float32"),
    ],
)
def test_fast_computes_in_what_this_processor_is_faster_in(
    folder, small_config, tmp_path, monkeypatch, capsys, stored, best, chosen
):
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder)
    model = Qwen2ForCausalLM(small_config(vocab_size=len(tokenizer)))
    if stored == "gguf":
        place = save_gguf(model, tokenizer, tmp_path / "small.gguf")
    else:
        place = tmp_path / "small"
        model.to(getattr(torch, stored)).save_pretrained(place)
        tokenizer.save_pretrained(place)
    monkeypatch.setattr(cli, "faster_dtype", lambda: (getattr(torch, best), f"{best}, measured"))
    loaded, *_ = cli.load(str(place), "auto", "cpu", fast=True, quantize=None)
    assert loaded.dtype == getattr(torch, chosen)
    said = f"Computed in {chosen}, measured" in capsys.readouterr().err
    assert said == (chosen != {"gguf": "float32"}.get(stored, stored))
