"""Models and tokenizers out of a GGUF file, by the same calls as out of a folder."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch
import transformers

from qwen2_edu import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Tokenizer,
)
from qwen2_edu.files.gguf_model import save_gguf

IDS = torch.tensor([[5, 7, 11, 13, 17, 19]])


@pytest.fixture(scope="module")
def tokenizer():
    return Qwen2Tokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, small_config, randomise, tokenizer):
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 48, "tie_word_embeddings": request.param}
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    special["pad_token_id"] = tokenizer.pad_token_id
    return randomise(Qwen2ForCausalLM(small_config(**sizes, **special)))


@pytest.fixture
def file(model, tokenizer, tmp_path):
    return save_gguf(model, tokenizer, tmp_path / "small.gguf")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("by_name", [True, False], ids=["a folder and gguf_file", "a path"])
def test_what_was_written_is_read(model, tokenizer, file, by_name):
    place, options = (file.parent, {"gguf_file": file.name}) if by_name else (file, {})
    loaded = AutoModelForCausalLM.from_pretrained(place, **options)
    assert torch.equal(logits(loaded), logits(model)) and not loaded.training
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    again = AutoTokenizer.from_pretrained(place, **options)
    text = "Anna had a small red ball.<|im_end|> e\u0301"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert again.chat_template == tokenizer.chat_template
    config = Qwen2Config.from_pretrained(place, **options, attn_implementation="eager")
    assert config.hidden_size == 48 and config.attn_implementation == "eager"


def test_a_load_opens_the_file_once(file, monkeypatch):
    from qwen2_edu.files.gguf import GGUFFile

    opened, once = [], GGUFFile.__init__
    monkeypatch.setattr(
        GGUFFile, "__init__", lambda self, path: opened.append(path) or once(self, path)
    )
    AutoModelForCausalLM.from_pretrained(file)
    assert opened == [file]


def test_types_heads_and_the_way_back(model, file, tmp_path):
    half = AutoModelForCausalLM.from_pretrained(file, dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.config.dtype == torch.bfloat16
    with pytest.warns(UserWarning, match="no score.weight: newly initialised"):
        head = Qwen2ForSequenceClassification.from_pretrained(file, num_labels=3)
    assert head.score.weight.shape == (3, 48)
    assert torch.equal(head.model.norm.weight, model.model.norm.weight)
    AutoModelForCausalLM.from_pretrained(file).save_pretrained(tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert (logits(theirs) - logits(model)).abs().max() < 1e-5


def test_verify(file):
    with pytest.raises(FileNotFoundError, match="nothing to compare"):
        AutoModelForCausalLM.from_pretrained(file, verify=True)
    sums, sha256 = file.with_name("SHA256SUMS"), hashlib.sha256(file.read_bytes()).hexdigest()
    sums.write_text(f"{sha256}  {file.name}\n")
    AutoModelForCausalLM.from_pretrained(file, verify=True)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="small.gguf is damaged or altered"):
        AutoModelForCausalLM.from_pretrained(file, verify=True)


def test_another_config_is_refused(file):
    with pytest.raises(ValueError, match="1 missing: lm_head|6 unexpected|shape .*the model needs"):
        AutoModelForCausalLM.from_pretrained(file, intermediate_size=81)


@pytest.mark.parametrize(
    ("name", "gguf_file", "error", "message"),
    [
        ("FOLDER", "other.gguf", FileNotFoundError, "no file 'other.gguf'"),
        ("FOLDER", "../small.gguf", ValueError, "must be a plain file name"),
        ("FOLDER", "small.bin", ValueError, "must be a plain file name ending in .gguf"),
        ("tiny", "small.gguf", ValueError, "is for folders and hub ids, not for 'tiny'"),
        ("FOLDER/small.bin", None, ValueError, "give the folder that holds it, or a GGUF file"),
    ],
)
def test_refusals(file, name, gguf_file, error, message):
    shutil.copy(file, file.with_name("small.bin"))
    name = name.replace("FOLDER", str(file.parent))
    for load in (AutoModelForCausalLM, AutoTokenizer, Qwen2Config):
        with pytest.raises(error, match=message):
            load.from_pretrained(name, **({"gguf_file": gguf_file} if gguf_file else {}))


def test_a_revision_is_of_repositories(file):
    with pytest.raises(ValueError, match="revision='v1' is for hub repositories"):
        AutoModelForCausalLM.from_pretrained(file, revision="v1")


def test_released_weights_that_are_not_here_say_how_to_get_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("QWEN2_EDU_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for load in (AutoModelForCausalLM, AutoTokenizer, Qwen2Config):
        with pytest.raises(FileNotFoundError, match="run `make released`.* 491 MB"):
            load.from_pretrained("released")
