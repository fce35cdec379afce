"""README's "What differs from transformers", sentence by sentence, on both."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import qwen2_edu
from qwen2_edu.attention import BACKENDS
from qwen2_edu.text.templates import QWEN2_TEMPLATE

SMALL = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
IDS = torch.tensor([[5, 6, 7, 8]])


def twins(head="ForCausalLM", **fields):
    config, models = SMALL | fields, []
    for house in (qwen2_edu, transformers):
        settings = house.Qwen2Config(**copy.deepcopy(config))
        models.append(getattr(house, f"Qwen2{head}")(settings).eval())
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(models[0].named_parameters()):
            weight.copy_(0.4 * torch.randn(weight.shape, generator=noise))
    models[1].load_state_dict(models[0].state_dict())
    return models


def test_only_safetensors_and_gguf_are_read(tmp_path):
    ours, _ = twins()
    ours.config.save_pretrained(tmp_path)
    torch.save(ours.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickle"):
        qwen2_edu.Qwen2ForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="no remote code is run"):
        qwen2_edu.Qwen2ForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)


def test_missing_weights_are_an_error(tmp_path):
    ours, _ = twins()
    ours.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="1 missing: model.norm.weight"):
        qwen2_edu.Qwen2ForCausalLM.from_pretrained(tmp_path)
    transformers.Qwen2ForCausalLM.from_pretrained(tmp_path)


def test_heads_and_layers_beyond_the_config(tmp_path):
    twins()[0].save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="layers from 1 on: not read"):
        qwen2_edu.Qwen2ForCausalLM.from_pretrained(tmp_path, num_hidden_layers=1)
    with pytest.raises(ValueError, match="one device"):
        several = {"model": "cpu", "lm_head": "meta"}
        qwen2_edu.Qwen2ForCausalLM.from_pretrained(tmp_path, device_map=several)


def test_a_save_replaces_an_older_one(tmp_path):
    model, _ = twins()
    model.generation_config = qwen2_edu.GenerationConfig(top_k=3)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len([*tmp_path.iterdir()]) > 4
    model.generation_config = None
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_padding_on_the_right_and_refused_searches():
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    same = []
    for model in twins():
        padded = model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=4)[0, 5:]
        same.append(
            padded.tolist() == model.generate(ids[:1, :3], max_new_tokens=4)[0, 3:].tolist()
        )
    assert same == [True, False]
    with pytest.raises(ValueError, match="logits_processor"):
        twins()[0].generate(IDS, guidance_scale=1.5)


def test_a_config_changed_later():
    """Ours obeys it, or refuses to build a model; theirs keeps some of it without effect."""
    obeyed = []
    for house in (qwen2_edu, transformers):
        config = house.Qwen2Config(**SMALL)
        config.rope_theta = 100.0
        config.num_hidden_layers = 3  # more than there were
        obeyed.append(config.rope_parameters["rope_theta"] == 100 and len(config.layer_types) == 3)
    assert obeyed == [True, False]
    config = qwen2_edu.Qwen2Config(**SMALL)
    config.num_attention_heads = 3
    with pytest.raises(ValueError, match="no multiple of num_attention_heads=3"):
        qwen2_edu.Qwen2Model(config)
    with pytest.raises(TypeError, match="set as a whole"):
        config.rope_parameters.update(factor=2.0)


def test_a_built_model_stays_with_its_backend():
    """Theirs asks its config at each pass, and shows its maps when that says eager."""
    ours, theirs = twins()
    assert not any(map(torch.is_tensor, theirs(IDS, output_attentions=True).attentions))
    ours.config.attn_implementation = theirs.config._attn_implementation = "eager"
    assert all(map(torch.is_tensor, theirs(IDS, output_attentions=True).attentions))
    attention = ours.model.layers[0].self_attn
    assert attention.attend is BACKENDS["sdpa"]
    ours.set_attn_implementation("eager")
    assert attention.attend is BACKENDS["eager"]


def test_a_tuned_prompt_is_for_the_forward_pass_alone():
    ours, _ = twins()
    tuned = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="as prompt tuning does"):
        peft.get_peft_model(ours, tuned).generate(input_ids=IDS, max_new_tokens=1)


def test_logits_that_are_no_numbers():
    ours, theirs = twins()
    for model in (ours, theirs):
        model.model.layers[1].mlp.up_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite numbers: first at 'layer 1"):
        ours.generate(IDS, max_new_tokens=2)
    assert theirs.generate(IDS, max_new_tokens=2).shape == (1, 6)


def test_a_window_of_one():
    window = {"use_sliding_window": True, "sliding_window": 1, "max_window_layers": 0}
    options = {"max_new_tokens": 6}
    for model, holds in zip(twins(**window), (True, False), strict=True):
        with_cache, without = (
            model.generate(IDS, use_cache=cached, **options).tolist() for cached in (True, False)
        )
        assert (with_cache == without) is holds


def test_where_a_text_ends_and_the_padding_row():
    ids, mask = torch.tensor([[5, 6, 0]]), torch.ones(1, 3).long()
    ours, theirs = twins("ForSequenceClassification")
    with torch.no_grad():
        last = ours.score(ours.model(ids, mask).last_hidden_state[:, -1])
        torch.testing.assert_close(ours(ids, mask).logits, last)
        assert not torch.allclose(theirs(ids, mask).logits, last, atol=1e-3)
    text, moved = torch.tensor([[5, 0, 7, 8]]), []
    for model in twins():
        model(text, labels=text).loss.backward()
        moved.append(bool(model.get_input_embeddings().weight.grad[0].any()))
    assert moved == [True, False]


def test_tokenizers(tmp_path):
    ours = qwen2_edu.AutoTokenizer.from_pretrained("tiny")
    ours.chat_template = QWEN2_TEMPLATE
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat, counts = [{"role": "user", "content": "<|im_end|>"}], []
    for tokenizer in (ours, theirs):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True).input_ids
        counts.append(ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")))
    assert counts == [2, 3]
    found = [t("e\u0301", return_offsets_mapping=True).offset_mapping for t in (ours, theirs)]
    assert max(end for _, end in found[0]) == 2 and max(end for _, end in found[1]) == 1
    with pytest.raises(ValueError, match="'pt', 'np', None"):
        ours("a", return_tensors="tf")
    with pytest.raises(TypeError, match="no pairs"):
        ours("a", "b")
