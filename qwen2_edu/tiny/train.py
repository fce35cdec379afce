"""The recipe of the shipped checkpoint: `python -m qwen2_edu.tiny.train`.

A vocabulary is learned from the small world, a model reads its stories, learns to chat about them,
and to tell some itself. Killed and called again, it goes on where it stood. Everything is written
to one folder, in the layout of a release, with its log.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from .. import bpe
from ..config import Qwen2Config
from ..decoding.settings import GenerationConfig
from ..files.disk import write_whole
from ..model import Qwen2ForCausalLM
from ..packing import Shuffled, in_order
from ..rope import rope_frequencies
from ..text.templates import QWEN2_TEMPLATE
from ..tokenizer import Qwen2TokenizerFast
from ..training import TrainingSettings, train
from .conversations import conversations
from .documents import documents
from .drills import drills
from .rows import ROW, inferred_rows, read_rows, table_rows, talk_rows
from .world import stories

VOCAB_SIZE = 4000
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the last ids, as in a release

CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "max_window_layers": 4,
    "sliding_window": 64,  # a story has some 70 to 160 tokens
}


class Stage(NamedTuple):
    """How long a stage is, and how many texts of each kind it has: about as many as it needs once.

    words_only: of its tables, see `table_rows`. begun: its documents begin with <|endoftext|>, so
    that their first word counts. easy: its drills, see `drills`. told: conversations that ask for a
    story. inferred: stories of which only what can be inferred counts, see `inferred_rows`.

    Every stage but the short "inferring" goes on with some of what came before it, or that is
    forgotten within some hundred steps.
    """

    settings: TrainingSettings
    tables: int = 0
    words_only: bool = False
    documents: int = 0
    begun: bool = False
    drills: int = 0
    easy: bool = True
    conversations: int = 0
    told: int = 0
    inferred: int = 0


EVERY = {"warmup_steps": 100, "precision": "bf16", "log_every": 25, "evaluate_every": 500}
EVERY |= {"save_every": 250}
STAGES = {
    "copying": Stage(
        TrainingSettings(500, 2e-3, floor=1.0, **EVERY), tables=21_000, words_only=True
    ),
    "reading": Stage(
        TrainingSettings(7_000, 2e-3, floor=0.4, **EVERY),
        tables=46_000,
        documents=75_000,
        drills=19_000,
    ),
    "chatting": Stage(
        TrainingSettings(6_000, 1e-3, floor=0.02, **EVERY),
        tables=23_000,
        documents=30_000,
        drills=10_500,
        easy=False,
        conversations=30_000,
    ),
    "inferring": Stage(TrainingSettings(450, 6e-4, **EVERY), inferred=30_000),
    "telling": Stage(
        TrainingSettings(5_000, 1e-3, floor=0.02, **EVERY),
        tables=6_000,
        documents=36_000,
        begun=True,
        drills=2_000,
        easy=False,
        conversations=8_000,
        told=18_000,
    ),
}
BATCH = 8  # rows a step
HELD_OUT = 400  # texts
# What the heads begin with, see lead_attention: in the first layer and those with a window, and in
# the others, which compare.
LOOKS = (1, 2, 3, None), (0, 0, 1, None)


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


def stage_rows(
    tokenizer: Qwen2TokenizerFast,
    stage: Stage,
    seed: int,
    texts: Iterator[str],
    spoken: Iterator[list[dict[str, str]]],
) -> dict[str, torch.Tensor]:
    """All rows of a stage. It takes its documents from `texts`, its conversations from `spoken`."""
    kinds = []
    if stage.tables:
        kinds.append(table_rows(tokenizer, stage.tables, seed, stage.words_only))
    if stage.documents:
        kinds.append(read_rows(tokenizer, islice(texts, stage.documents), stage.begun))
    talks = [*drills("train", stage.drills, seed, stage.easy)]
    talks += islice(spoken, stage.conversations)
    talks += conversations("train", stage.told, seed, kinds=("tell",))
    if talks:
        kinds.append(talk_rows(tokenizer, talks))
    if stage.inferred:
        kinds.append(inferred_rows(tokenizer, stories("train", stage.inferred, seed)))
    return {name: torch.cat([rows[name] for rows in kinds]) for name in kinds[0]}


@torch.no_grad()
def lead_attention(model: Qwen2ForCausalLM) -> None:
    """Begin with heads that look back, compare and copy: from noise alone they take long to start.

    A rotary pair that turns fast tells near from far, one that hardly turns keeps what it is given.
    So keys hold what stands at their place in the slow pairs, and in the fast ones a bias, the same
    everywhere. Of the query heads that share a key head, LOOKS says what each begins with:

    - to look back so many tokens, whatever stands there: its bias is the key's, turned by so much;
    - 0, to compare: its slow pairs are the key's, so it finds tokens like its own, and its bias
      points away from the key's, or it would find itself;
    - None: chance.

    After layer 0, what a head adds resembles what it has read: its output is near the transpose of
    its values. It is small beside the embedding, or a later layer could no longer see which token
    stands where.

    The last key head of layers 0 and 1 begins as an induction head: its first query head in layer 0
    looks one back and writes what it reads to a place of its own, and its keys in layer 1 read that
    place, while the first query head there looks for its own token.

    Source: Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, arXiv:2305.09828,
        for comparing and copying; Olsson et al., In-context Learning and Induction Heads,
        arXiv:2209.11895, for the two layers of an induction head.
    """
    E, D, G = (getattr(model.config, n) for n in ("hidden_size", "head_dim", "num_key_value_heads"))
    n = D // 6  # fast pairs, a third of all
    fast = [*range(n), *range(D // 2, D // 2 + n)]
    slow = [j for j in range(D) if j not in fast]
    frequencies = rope_frequencies(model.config)[0][:n]

    def towards(angles: torch.Tensor, length: float) -> torch.Tensor:
        return length * torch.cat([angles.cos(), angles.sin()])

    model.model.embed_tokens.weight.mul_(3)  # times 0.02 is 0.06, about 1/√E
    for i, layer in enumerate(model.model.layers):
        looks = LOOKS[i > 0 and model.config.layer_types[i] == "full_attention"]
        attention = layer.self_attn
        q, k, v, o = (getattr(attention, f"{name}_proj") for name in "qkvo")
        k.weight.mul_(7.5 if 0 in looks else 1)  # alike, two tokens score some 14, others 0 ± 4
        v.weight.mul_(3.5)
        o.weight.mul_(0.15)
        queries, query_biases = (x.unflatten(0, (G, -1, D)) for x in (q.weight, q.bias))  # views:
        keys, key_biases, values = (x.unflatten(0, (G, D)) for x in (k.weight, k.bias, v.weight))
        outputs = o.weight.unflatten(1, (G, -1, D))  # (E, G, H/G, D); all is changed in place

        phase, length = 2 * math.pi * torch.rand(n), 4 if i else 5
        keys[:, fast] = 0
        key_biases[:, fast] = towards(phase, length)
        for head, back in enumerate(looks):
            if back == 0:
                queries[:, head] = keys
                query_biases[:, head, fast] = towards(phase + math.pi, 3)
            elif back is not None:
                queries[:, head] = 0
                query_biases[:, head, fast] = towards(phase - back * frequencies, length)
        if i > 0:
            outputs += 0.04 * values.permute(2, 0, 1).unsqueeze(2)
        else:
            read = values[-1].clone()  # (D, E)
            place = torch.linalg.qr(torch.cat([read.T, torch.randn(E, D)], dim=1)).Q[:, D:]
            outputs[:, -1, 0] = 0.24 * place  # at right angles to all that `read` reads
        if i == 1:
            some = torch.randn(len(slow), D)
            for weight, part in ((keys[-1], place.T), (queries[-1, 0], read)):
                weight[slow] = 2.6 * torch.nn.functional.normalize(some @ part, dim=1)
            outputs[:, -1, 0] = 0.4 * values[-1].T


def make(
    folder: Path,
    *,
    stages: dict[str, Stage] = STAGES,
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
    texts = documents("train", sum(stage.documents for stage in stages.values()))
    spoken = conversations("train", sum(stage.conversations for stage in stages.values()))
    exams = {
        "copying": table_rows(tokenizer, HELD_OUT, seed=len(stages), words_only=True),
        "reading": read_rows(tokenizer, documents("heldout", HELD_OUT)),
        "chatting": talk_rows(tokenizer, conversations("heldout", HELD_OUT)),
        "inferring": inferred_rows(tokenizer, stories("heldout", HELD_OUT)),
        "telling": talk_rows(tokenizer, conversations("heldout", HELD_OUT, kinds=("tell",))),
    }

    torch.manual_seed(0)
    config = Qwen2Config(**CONFIG, attn_implementation="eager" if device == "cpu" else "sdpa")
    model = Qwen2ForCausalLM(config)
    lead_attention(model)  # on the CPU, so that every device begins with the same numbers
    model.to(device)
    for layer in model.model.layers if compiled else ():
        layer.compile()  # one after the other: faster on a CPU by a quarter, and soon compiled

    log = []
    for seed, (name, stage) in enumerate(stages.items()):
        print(f"{name}: {stage.settings.steps:,} steps of {BATCH} rows of {ROW} tokens")
        rows = stage_rows(tokenizer, stage, seed, texts, spoken)
        with only_what_is_read(model, rows["input_ids"]):
            lines = train(
                model,
                Shuffled(rows, BATCH, seed=1),
                stage.settings,
                held_out=in_order(exams[name], 2 * BATCH),
                folder=folder / name,
                progress=progress,
            )
        log += [{"stage": name, **line} for line in lines]
    return export(folder / "checkpoint", model, tokenizer, log)


@contextmanager
def only_what_is_read(model: Qwen2ForCausalLM, ids: torch.Tensor) -> Iterator[None]:
    """Tokens that these ids lack keep their embeddings, or they would become all the same.

    As outputs they are only ever pushed away, all in the same direction, and AdamW makes large
    steps of small gradients: after some hundred steps what sets them apart is lost in that.
    """
    weight = model.get_input_embeddings().weight
    read = torch.zeros(len(weight), 1, device=weight.device)
    read[ids.unique()] = 1
    hook = weight.register_hook(lambda gradient: gradient * read)
    try:
        yield
    finally:
        hook.remove()


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
        max_new_tokens=256,  # a story has at most some 160
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
