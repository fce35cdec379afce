"""verify.py end to end: a stand-in release, with facts about it that transformers computed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from qwen2_edu.cli import app
from qwen2_edu.config import FACTS
from qwen2_edu.verify import checks

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PROMPT = "the cat sat on "
WEIGHTS = "model.safetensors"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def make_tokenizer(folder):
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=297, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the rat sat on the cat"] * 5, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """(folder, facts): everything in both comes from transformers."""
    folder = tmp_path_factory.mktemp("org") / "Stand-In-0.1M"
    folder.mkdir()
    config = transformers.Qwen2Config(
        vocab_size=304,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_theta=1e6,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
        eos_token_id=303,
        dtype="bfloat16",
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.bfloat16().save_pretrained(folder)
    make_tokenizer(folder)

    model = transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = [1, 30, 46, 27, 65, 31, 28, 33]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]

    def greedy(prompt, steps):
        prompt = torch.tensor([prompt])
        return model.generate(prompt, max_new_tokens=steps, do_sample=False)[0].tolist()

    prompt_ids = tokenizer.encode(PROMPT)
    whole = greedy(prompt_ids, 12)
    facts = {
        "config": json.loads((folder / "config.json").read_text()),
        "num_parameters": model.num_parameters(),
        "files": {WEIGHTS: {"sha256": sha256((folder / WEIGHTS).read_bytes())}},
        "logits": [
            {
                "input_ids": ids,
                "what": "mean over the vocabulary",
                "expected": logits.mean(-1).tolist(),
                "tolerance": 0.0001,
            },
            {
                "input_ids": ids,
                "what": "first position",
                "expected": logits[0, :30].tolist(),
                "tolerance": 0.0001,
            },
        ],
        "greedy": [
            {
                "prompt": PROMPT,
                "input_ids": prompt_ids,
                "new_ids": whole[len(prompt_ids) :],
                "text": tokenizer.decode(whole),
            },
            {
                "input_ids": [1],
                "then": [30, 33],
                "times": 40,
                "max_new_tokens": 4,
                "ends_with": greedy([1] + [30, 33] * 40, 4)[-2:],
            },
        ],
    }
    return folder, facts


@pytest.fixture
def stand_in(release, tmp_path):
    """A copy to break: (folder, facts, run) where run() answers the exit code and the output."""
    folder = tmp_path / release[0].name
    shutil.copytree(release[0], folder)
    facts = copy.deepcopy(release[1])

    def run(*options):
        goldens = tmp_path / "goldens.json"
        goldens.write_text(json.dumps({"models": {f"org/{folder.name}": facts}}))
        return verify(folder, goldens, *options)

    return folder, facts, run


def verify(folder, goldens, *options):
    """The exit code of the command, and what it said."""
    result = CliRunner().invoke(app, ["verify", str(folder), "--goldens", str(goldens), *options])
    return result.exit_code, result.output


def failed(output):
    return [line.split()[1] for line in output.splitlines() if line.startswith("FAIL ")]


def test_the_right_checkpoint_passes(stand_in):
    code, output = stand_in[2]()
    assert code == 0, output
    passed = [line.split()[1] for line in output.splitlines() if line.startswith("PASS ")]
    assert passed == ["files", "config", "parameters", "logits", "greedy"]
    assert output.endswith("verified, 5 of 5 checks\n")


def flip(folder, bit):
    """Flip one bit of one weight: the first of layer 0's value projection."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    start = header["model.layers.0.self_attn.v_proj.weight"]["data_offsets"][0]
    data[8 + length + start + bit // 8] ^= 1 << bit % 8
    (folder / WEIGHTS).write_bytes(data)
    return sha256(data)


def test_one_flipped_weight(stand_in):
    folder, facts, run = stand_in
    flip(folder, bit=0)  # the last of its mantissa: no other check could see it
    code, output = run()
    assert code == 1 and failed(output) == ["files"]
    assert f"published is {facts['files'][WEIGHTS]['sha256']}" in output
    assert output.endswith("FAILED, 4 of 5 checks\n")


def test_one_flipped_weight_with_a_matching_hash(stand_in):
    """Were the file published so, the numbers would still tell."""
    folder, facts, run = stand_in
    facts["files"][WEIGHTS]["sha256"] = flip(folder, bit=13)  # an exponent
    code, output = run()
    assert code == 1 and "logits" in failed(output) and "files" not in failed(output)
    assert "first position: off by " in output or "mean over the vocabulary: off by " in output


@pytest.mark.parametrize(
    ("field", "value", "failures"),
    [
        ("rope_theta", 10000.0, {"config", "logits"}),
        ("rms_norm_eps", 2e-6, {"config"}),
        ("eos_token_id", 7, {"config"}),
    ],
)
def test_wrong_config(stand_in, field, value, failures):
    folder, _, run = stand_in
    config = json.loads((folder / "config.json").read_text())
    if field == "rope_theta":
        assert config["rope_parameters"]["rope_theta"] == 1e6
        config["rope_parameters"]["rope_theta"] = value
    else:
        config[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    code, output = run()
    assert code == 1 and set(failed(output)) == failures
    assert f"{field} is {value!r}, published is " in output


@pytest.mark.parametrize(
    ("file", "checks", "message"),
    [
        (WEIGHTS, ["files", "parameters", "logits", "greedy"], f"{WEIGHTS} is not there"),
        ("config.json", ["config", "parameters", "logits", "greedy"], "has no config.json"),
        ("tokenizer.json", ["greedy"], "tokenizer.json"),
    ],
)
def test_absent_file(stand_in, file, checks, message):
    folder, _, run = stand_in
    (folder / file).unlink()
    code, output = run()
    assert code == 1 and failed(output) == checks
    assert message in output


def test_weights_from_other_files_than_the_published(stand_in):
    """An index beside the right file, which a reader might prefer."""
    folder, facts, run = stand_in
    facts["files"]["model-00001-of-00001.safetensors"] = facts["files"].pop(WEIGHTS)
    shutil.copy(folder / WEIGHTS, folder / "model-00001-of-00001.safetensors")
    code, output = run()
    assert code == 1 and "weights are read from ['model.safetensors']" in output


@pytest.mark.parametrize("key", ["config", "num_parameters", "files", "logits", "greedy"])
def test_a_fact_nobody_recorded_is_a_failure(stand_in, key):
    folder, facts, run = stand_in
    del facts[key]
    code, output = run()
    assert code == 1 and failed(output) == ["parameters" if key == "num_parameters" else key]
    assert "nobody recorded this" in output


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("num_parameters", lambda n: n + 1, " parameters, published are "),
        ("greedy", lambda facts: [{**facts[0], "text": "no"}], "'the cat sat on ' is ["),
        ("greedy", lambda facts: [{**facts[0], "new_ids": [7] * 12}], "published are [7, 7,"),
        ("greedy", lambda facts: [{**facts[1], "ends_with": [7, 7]}], "published are [7, 7]"),
        ("logits", lambda facts: [{**facts[0], "expected": [float("nan")] * 8}], "off by nan"),
    ],
)
def test_every_fact_counts(stand_in, key, change, message):
    _, facts, run = stand_in
    facts[key] = change(facts[key])
    code, output = run()
    assert code == 1 and len(failed(output)) == 1 and message in output


def test_names(stand_in, tmp_path):
    folder, _, run = stand_in
    assert run("--known-as", f"org/{folder.name}")[0] == 0
    assert run("--known-as", folder.name)[0] == 0
    assert run("--known-as", f"other/{folder.name}")[0] == 1
    code, output = run("--known-as", "org/other")
    assert code == 1 and "no facts are recorded for 'org/other'" in output
    other = folder.rename(tmp_path / "other")
    code, output = verify(other, tmp_path / "goldens.json")
    assert code == 1 and "no facts are recorded for" in output


@pytest.mark.parametrize("name", ["Qwen/Qwen2-0.5B", "Qwen/Qwen2-72B", "no-such-name", "/no/such"])
def test_not_possible_means_failed(name):
    """Offline, as all tests are, and not in the cache."""
    (check,) = checks(name, cache_dir="/nonexistent")
    assert not check.ok and check.name == "found"
    says = {"no-such-name": "nor a folder", "/no/such": "there is no file and no folder '/no/such'"}
    assert says.get(name, "HF_HUB_OFFLINE") in check.detail


def test_answers_come_as_they_are_known(stand_in, tmp_path):
    stand_in[0].joinpath(WEIGHTS).unlink()
    goldens = tmp_path / "goldens.json"
    goldens.write_text(json.dumps({"models": {stand_in[0].name: stand_in[1]}}))
    first = next(checks(stand_in[0], goldens=goldens))
    assert first.name == "files" and not first.ok


def make_verify(folder, *more):
    """`make verify-released` as it stands, but for the environment it would build first."""
    command = ["make", "verify-released", f"MODEL={folder}", "STAMP=", f"RUN={sys.executable}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    root = Path(__file__).parents[2]
    return subprocess.run(
        [*command, *more], cwd=root, capture_output=True, text=True, env=environment
    )


def test_make_verify_released(stand_in, tmp_path):
    """Right passes; one flipped bit of one weight fails."""
    folder, facts, _ = stand_in
    goldens = tmp_path / "goldens.json"
    goldens.write_text(json.dumps({"models": {folder.name: facts}}))
    for passes in (True, False):
        done = make_verify(folder, f"GOLDENS={goldens}")
        assert (done.returncode == 0) == passes, done.stdout + done.stderr
        assert ("verified, 5 of 5" if passes else "FAILED, 4 of 5") in done.stderr
        assert "Traceback" not in done.stderr
        flip(folder, bit=0)


def test_make_verify_released_without_facts(stand_in):
    folder = stand_in[0]
    done = make_verify(folder)
    assert done.returncode != 0  # the published facts know no stand-in
    assert f"no facts are recorded for '{folder}'" in done.stdout
    assert "FAILED, 0 of 1 checks" in done.stderr


# -- the facts that come with the package ----------------------------------------------------------


def test_packaged_facts_are_the_recorded_ones(goldens):
    models = json.loads(FACTS.read_text(encoding="utf-8"))["models"]
    files, weights = goldens("released_files"), goldens("released_weights")
    recorded = files["configs"]["models"]
    assert {name.removeprefix("Qwen/") for name in models} == set(recorded)
    for name, facts in models.items():
        source = recorded[name.removeprefix("Qwen/")]
        assert facts["config"] == source["config"]
        assert facts["num_parameters"] == source["params_total"]
    published = {(w["model"], w["file"]): w["sha256"] for w in files["file_hashes"]["weights"]}
    ours = {
        (name, file): fact["sha256"]
        for name, facts in models.items()
        for file, fact in facts.get("files", {}).items()
    }
    assert ours == published
    facts = models["Qwen/Qwen2-0.5B"]
    sources = {f["what"]: f for f in weights["facts"] if f["model"] == "Qwen/Qwen2-0.5B"}
    mean = sources["mean over vocab of logits at each of 8 positions, float32"]
    first = sources["logits[0,0,:30], float32"]
    for fact, source in zip(facts["logits"], (mean, first), strict=True):
        assert fact["expected"] == source["expected"]
        assert [fact["input_ids"]] == source["inputs"]["input_ids"]
    short, long = facts["greedy"]
    source = sources["greedy completion, 20 new tokens, float32"]
    assert (short["prompt"], short["input_ids"]) == (
        source["inputs"]["prompt"],
        source["inputs"]["prompt_ids"],
    )
    assert {k: short[k] for k in ("text", "new_ids")} == source["expected"]
    source = next(f for what, f in sources.items() if what.startswith("long prompt greedy"))
    expression = f"{long['input_ids']} + {long['then']} * {long['times']}"
    assert expression == source["inputs"]["input_ids_expr"]
    assert long["ends_with"] == source["expected"]
    assert long["max_new_tokens"] == source["inputs"]["max_new_tokens"]
