"""transformers opens the shipped checkpoint and says the same; the page's own code runs."""

from __future__ import annotations

import pytest
import torch
import transformers

from qwen2_edu import AutoModelForCausalLM, AutoTokenizer
from qwen2_edu.hub import resolve
from qwen2_edu.tiny.documents import exam, first_turn

FOLDER = str(resolve("tiny", "model"))
CONVERSATIONS = [
    [{"role": "user", "content": first_turn(story, question)}]
    for story, (question,) in exam("heldout", 3, seed=5, turns=1)
]
TEXTS = ["Hello!", "  Zoë had 3 balls.\n\n", "我想要粉色的茶壶。 أريد", "def f(x):\n    return x"]


@pytest.fixture(scope="module")
def ours():
    return AutoModelForCausalLM.from_pretrained("tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def theirs():
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizers():
    return AutoTokenizer.from_pretrained("tiny"), transformers.AutoTokenizer.from_pretrained(FOLDER)


def prompt(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")


def test_same_ids(tokenizers):
    ours, theirs = tokenizers
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids
    for messages in CONVERSATIONS:
        mine, yours = prompt(ours, messages), prompt(theirs, messages)
        assert mine.input_ids.tolist() == yours["input_ids"].tolist()
    assert len(ours) == len(theirs) == 4000
    assert ours.eos_token_id == theirs.eos_token_id == 3999


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_same_logits_and_the_same_answer(ours, theirs, tokenizers, messages):
    ids = prompt(tokenizers[0], messages).input_ids
    assert ids.shape[1] > ours.config.sliding_window, "the window must matter"
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)
    mine = ours.generate(ids, max_new_tokens=24, do_sample=False)
    yours = theirs.generate(ids, max_new_tokens=24, do_sample=False)
    assert tokenizers[0].decode(mine[0]) == tokenizers[1].decode(yours[0])


PAGE = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen1.5-7B-Chat", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen1.5-7B-Chat")
messages = [{"role": "user", "content": prompt}]
text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
model_inputs = tokenizer([text], return_tensors="pt").to("cuda")
generated_ids = model.generate(model_inputs.input_ids, max_new_tokens=512, do_sample=True)
generated_ids = [output_ids[len(input_ids):] for input_ids, output_ids in zip(model_inputs.input_ids, generated_ids)]
response = tokenizer.batch_decode(generated_ids, skip_special_tokens=True)[0]
"""  # noqa: E501


def test_the_page_runs_with_import_and_name_changed():
    """And "cuda", where there is none: the page supposes one."""
    code = PAGE.replace("transformers", "qwen2_edu").replace("Qwen/Qwen1.5-7B-Chat", "tiny")
    if not torch.cuda.is_available():
        code = code.replace('"cuda"', '"cpu"')
    names = {"prompt": "Tell me a story."}
    exec(code, names)
    assert len(names["response"].split()) > 20
    assert names["generated_ids"][0][-1] == names["tokenizer"].eos_token_id, "it ended by itself"
