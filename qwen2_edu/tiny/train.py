"""The recipe of the shipped checkpoint: `python -m qwen2_edu.tiny.train`.

A vocabulary is learned from the small world, a model reads its stories, then learns to chat about
them. Killed and called again, it goes on where it stood. Everything is written to one folder, in
the layout of a release, with the log of every step.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import bpe
from ..chat_templates import QWEN2_TEMPLATE
from ..common import write_whole
from ..config import Qwen2Config
from ..generation_config import GenerationConfig
from ..model import Qwen2ForCausalLM
from ..packing import Shuffled, chat_documents, in_order, pack
from ..rope import rope_frequencies
from ..tokenizer_fast import Qwen2TokenizerFast
from ..training import TrainingSettings, train
from .conversations import conversations
from .documents import documents

VOCAB_SIZE = 4000
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the last ids, as in a release
ROW = 256  # T, of a training row; the longest conversation has some 240 tokens

CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "max_window_layers": 4,
    "sliding_window": 64,  # a story has 71 to 155 tokens
}

EVERY = {"precision": "bf16", "log_every": 25, "evaluate_every": 500, "save_every": 250}
COPYING = TrainingSettings(steps=600, learning_rate=2e-3, floor=1.0, warmup_steps=100, **EVERY)
READING = TrainingSettings(steps=4_500, learning_rate=2e-3, floor=0.3, warmup_steps=100, **EVERY)
CHATTING = TrainingSettings(steps=3_400, learning_rate=2e-3, floor=0.02, warmup_steps=100, **EVERY)
BATCH = 8  # rows a step
# About as many as are read in so many steps, so that hardly any comes twice. While it learns to
# chat it reads on, a tenth as many documents as conversations, so that nothing is forgotten.
ECHOES, DOCUMENTS, CONVERSATIONS, HELD_OUT = 12_000, 110_000, 42_000, 400


def learn_vocabulary() -> Qwen2TokenizerFast:
    """A tokenizer whose merges come from the small world, with the released special tokens."""
    talk = (m["content"] for messages in conversations("train", 8_000) for m in messages)
    vocab, merges = bpe.train(
        chain(documents("train", 20_000), talk), VOCAB_SIZE, special_tokens=SPECIAL_TOKENS
    )
    added = {len(vocab) + i: token for i, token in enumerate(SPECIAL_TOKENS)}
    return Qwen2TokenizerFast(
        vocab,
        merges,
        added_tokens=added,
        chat_template=QWEN2_TEMPLATE,
        model_max_length=CONFIG["max_position_embeddings"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def read_rows(tokenizer: Qwen2TokenizerFast, texts: Iterable[str]) -> dict[str, torch.Tensor]:
    """Documents as rows for training, each ended by <|endoftext|>."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return pack([[*ids, end] for ids in tokenizer(list(texts))["input_ids"]], ROW)


def echo_rows(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of 8 to 64 random tokens, said again and again; what is said first does not count.

    The only way to foresee such a row is to find where the last token stood before and to look at
    what followed: an induction head. Stories need one too, but they teach it slowly.
    """
    chance = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB_SIZE - len(SPECIAL_TOKENS), (n, 64), generator=chance)
    period = torch.randint(8, 65, (n, 1), generator=chance)
    positions = torch.arange(ROW).expand(n, ROW)
    ids = tokens.gather(1, positions % period)
    labels = ids.masked_fill(positions < period, -100)
    return {"input_ids": ids, "position_ids": positions.contiguous(), "labels": labels}


def talk_rows(
    tokenizer: Qwen2TokenizerFast, talks: Iterable[list[dict[str, str]]]
) -> dict[str, torch.Tensor]:
    """Conversations as rows in which only the assistant's words count; too long ones are left out.

    A conversation cut in two would teach to answer about a story that is not there.
    """
    ids, labels = chat_documents(tokenizer, list(talks))
    fitting = [i for i, conversation in enumerate(ids) if len(conversation) <= ROW]
    return pack([ids[i] for i in fitting], ROW, [labels[i] for i in fitting])


def joined(*several: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of several kinds as one table."""
    return {name: torch.cat([rows[name] for rows in several]) for name in several[0]}


@torch.no_grad()
def lead_attention(model: Qwen2ForCausalLM) -> None:
    """Begin with heads that compare, copy and look back: from noise alone they take long to start.

    Every other query head resembles the key head that it shares, so it finds tokens like its own.
    The others look one or two tokens back, whatever stands there: biases of queries and keys are
    one vector, turned against each other by so many steps of the four fastest rotations. What a
    head adds resembles what it has read: its output is near the transpose of its values. And what
    attention reads is larger than the usual 0.02, which is little for so narrow a model.

    Source: Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, arXiv:2305.09828,
        for comparing and copying.
    """
    larger = 3.5  # times 0.02 is 0.07, about 1/√E
    frequencies = rope_frequencies(model.config)[0][:4]
    model.model.embed_tokens.weight.mul_(larger)
    for layer in model.model.layers:
        attention, D = layer.self_attn, model.config.head_dim
        q, k, v = (getattr(attention, f"{name}_proj") for name in "qkv")
        for projection in (q, k, v):
            projection.weight.mul_(larger)
        group = q.out_features // k.out_features
        keys = k.weight.unflatten(0, (-1, D)).repeat_interleave(group, dim=0)  # (H, D, E)
        values = v.weight.unflatten(0, (-1, D)).repeat_interleave(group, dim=0)  # (H, D, E)
        queries = q.weight.unflatten(0, (-1, D))  # (H, D, E), a view: what follows is in place
        queries[::2] = 0.3 * queries[::2] + 0.7 * keys[::2]
        attention.o_proj.weight.add_(0.25 * values.flatten(0, 1).T)

        phase = 2 * math.pi * torch.rand(len(frequencies))
        query_biases = q.bias.unflatten(0, (-1, D))  # (H, D), a view
        set_pairs(k.bias.unflatten(0, (-1, D)), phase)
        for back in (1, 2):
            set_pairs(query_biases[2 * back - 1 :: 4], phase - back * frequencies)


def set_pairs(biases: torch.Tensor, phase: torch.Tensor) -> None:
    """In the first rotary pairs of (…, D) biases, vectors of length 4 at these angles."""
    n, half = len(phase), biases.shape[-1] // 2
    biases[..., :n] = 4 * phase.cos()
    biases[..., half : half + n] = 4 * phase.sin()


def make(
    folder: Path,
    *,
    copying: TrainingSettings = COPYING,
    reading: TrainingSettings = READING,
    chatting: TrainingSettings = CHATTING,
    n_echoes: int = ECHOES,
    n_documents: int = DOCUMENTS,
    n_conversations: int = CONVERSATIONS,
    device: str = "cpu",
    compiled: bool = True,
    progress: bool = True,
) -> Path:
    """Run the recipe, or go on with it; the checkpoint is then in `folder/checkpoint`.

    Raises:
        OSError: the folder cannot be written.
        ValueError: it holds a run of another recipe, or a broken state. See `training.train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = learn_vocabulary()
    texts = list(documents("train", n_documents))
    held_out = read_rows(tokenizer, documents("heldout", HELD_OUT))

    torch.manual_seed(0)
    config = Qwen2Config(**CONFIG, attn_implementation="eager" if device == "cpu" else "sdpa")
    model = Qwen2ForCausalLM(config).to(device)
    lead_attention(model)
    for layer in model.model.layers if compiled else ():
        layer.compile()  # one after the other: faster on a CPU by a quarter, and soon compiled

    def stage(name: str, rows: dict, held_out: dict, settings: TrainingSettings) -> list[dict]:
        print(f"{name}: {settings.steps:,} steps of {BATCH} rows of {ROW} tokens")
        batches, exam = Shuffled(rows, BATCH, seed=1), in_order(held_out, 2 * BATCH)
        log = train(
            model, batches, settings, held_out=exam, folder=folder / name, progress=progress
        )
        return [{"stage": name, **line} for line in log]

    parrots = read_rows(tokenizer, documents("train", n_echoes, kinds=("parrot", "shopping")))
    echoes = joined(parrots, echo_rows(len(parrots["labels"])))
    log = stage("copying", echoes, echo_rows(32, seed=1), copying)
    log += stage("reading", read_rows(tokenizer, texts), held_out, reading)
    talks = talk_rows(tokenizer, conversations("train", n_conversations))
    again = read_rows(tokenizer, texts[: n_conversations // 10])
    held_out = talk_rows(tokenizer, conversations("heldout", HELD_OUT))
    log += stage("chatting", joined(talks, again), held_out, chatting)
    return export(folder / "checkpoint", model, tokenizer, log)


def export(
    folder: Path, model: Qwen2ForCausalLM, tokenizer: Qwen2TokenizerFast, log: list[dict]
) -> Path:
    """Write the checkpoint as a chat model is released: bfloat16, with all its settings."""
    from ..viz.training import loss_curve  # here: only the drawing needs the notebook packages

    im_end, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    settings = {"bos_token_id": end, "eos_token_id": im_end}
    config = Qwen2Config(**CONFIG, **settings, dtype="bfloat16")
    released = Qwen2ForCausalLM(config).to(torch.bfloat16)
    released.load_state_dict(model.state_dict())
    released.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        max_new_tokens=256,  # a story has at most 155, and with it the conversation fits
        repetition_penalty=1.0,  # an answer repeats words of the story: no penalty for that
        bos_token_id=end,
        eos_token_id=[im_end, end],
        pad_token_id=end,
    )
    released.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lines = "".join(json.dumps(line) + "\n" for line in log)
    write_whole(folder / "training.jsonl", lines.encode())
    loss_curve(log).savefig(folder / "loss.png", metadata={"Software": None})
    return folder


def main(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/tiny"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="torch.compile needs a C++ compiler.")] = True,
) -> None:
    """Make the shipped checkpoint again. Interrupt it at will: the same call goes on."""
    try:
        print(f"The checkpoint is in {make(folder, device=device, compiled=compiled)}")
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    typer.run(main)
