"""What is asked of transformers, and how; and our model put together from the same file."""

from __future__ import annotations

import functools
import gc
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM

NEW, BEAM_NEW = 48, 12
CHAT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Write a haiku about the sea."},
]
PROMPTS = {
    "prose": "The capital of France is",
    "code": "def quicksort(arr):\n",
    "Chinese": "今天天气很好，我们去",
    "Arabic": "قدم لي مقدمة موجزة عن النموذج اللغوي",
    "chat": CHAT,
    "fill in the middle": "<|fim_prefix|>def mean(values):\n    total = 0\n"
    "<|fim_suffix|>\n    return total / len(values)\n<|fim_middle|>",
}


@dataclass
class Answer:
    """What transformers says to one prompt.

    prompt: ids (T,), by its own reading of the tokenizer and the template.
    greedy: ids of the continuation, (n,), n = 48 or up to and with the end token.
    logits: of one pass over both, at the positions that chose them, (n, V).
    """

    prompt: Tensor
    greedy: Tensor
    logits: Tensor

    @property
    def ids(self) -> Tensor:
        """Prompt and continuation, (1, T + n)."""
        return torch.cat((self.prompt, self.greedy))[None]


@dataclass
class Reference:
    """All that is asked of transformers: answers, a beam search, a hash of each of its tensors, its
    tokenizer, its config.
    """

    answers: dict[str, Answer]
    beam: list[int]
    hashes: dict[str, str]
    tokens: dict[str, list[int]]
    tokenizer: dict
    config: dict


TEXTS = [
    "It's 1234.5 °C — isn't it?\n\n\tYes!  ",
    "你好，世界！ こんにちは Привет नमस्ते שלום 👩‍👩‍👧 café",
    "<|im_start|>user\nHi<|im_end|> <tool_call>{}</tool_call><|fim_pad|> [PAD151700]",
    'for(i=0;i<10;i++){\r\n    printf("%d\\n", i);\r\n}',
]


def ask_transformers(released_file: Path) -> Reference:
    """transformers, through its own reader. Its tensors are gone when this returns."""
    import gguf
    import transformers

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        # It opens the file anew for config, tokenizer and tensors, which takes 8 s each time.
        patch.setattr(gguf, "GGUFReader", functools.lru_cache(1)(gguf.GGUFReader))
        place = (released_file.parent,)
        options = {"gguf_file": released_file.name, "local_files_only": True}
        tokenizer = transformers.AutoTokenizer.from_pretrained(*place, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            *place, **options, dtype=torch.float32
        )
    answers = _answer_all(model, tokenizer)
    with torch.no_grad():
        prompt = answers["prose"].prompt[None]
        beam = model.generate(prompt, max_new_tokens=BEAM_NEW, num_beams=3, do_sample=False)
    added = tokenizer.added_tokens_decoder.items()
    described = {
        "special_tokens_map": tokenizer.special_tokens_map,
        "added": {i: (t.content, t.special, t.normalized) for i, t in added},
        "chat_template": tokenizer.chat_template,
    }
    found = Reference(
        answers=answers,
        beam=beam[0, prompt.shape[1] :].tolist(),
        hashes={name: hash_of(tensor) for name, tensor in model.state_dict().items()},
        tokens={text: tokenizer(text).input_ids for text in TEXTS},
        tokenizer=described,
        config=model.config.to_dict(),
    )
    del model, tokenizer
    gc.collect()
    return found


@torch.no_grad()
def _answer_all(model, tokenizer) -> dict[str, Answer]:
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
        if isinstance(p, list)
        else p
        for p in PROMPTS.values()
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    new = model.generate(**batch, max_new_tokens=NEW, do_sample=False)[
        :, batch.input_ids.shape[1] :
    ]
    answers = {}
    for name, ids, mask, row in zip(
        PROMPTS, batch.input_ids, batch.attention_mask, new, strict=True
    ):
        prompt, end = ids[mask.bool()], (row == tokenizer.eos_token_id).nonzero()
        greedy = row[: int(end[0]) + 1] if len(end) else row
        whole = torch.cat((prompt, greedy))[None, :-1]
        logits = model(whole, logits_to_keep=len(greedy)).logits[0]
        answers[name] = Answer(prompt, greedy, logits)
    return answers


def hash_of(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


def assemble(config: Qwen2Config, tensors: dict[str, Tensor]) -> Qwen2ForCausalLM:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()
