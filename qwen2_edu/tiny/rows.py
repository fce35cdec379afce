"""What the small model is trained on, as rows of tokens: texts, talks, tables, and what counts.

Rows are (B, T = ROW) tables of input_ids, position_ids and labels, as `packing.pack` makes them:
several documents in a row, each with positions of its own. Where the label is -100, nothing counts.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain

import torch

from ..packing import chat_documents, pack
from ..tokenizer import Qwen2TokenizerFast
from .words import ANIMALS, COLOURS, NAMES, NUMBERS, PLACES, SIZES, THINGS, TREATS
from .world import Story

ROW = 256  # T, of a training row; nearly every conversation fits
# What stands between the words of a table, as in a story or a chat.
GLUE = [",", ".", "!", "?", "\n", "The", "What", "Who", "<|im_end|>", "<|im_start|>"]
GLUE += [f" {word}" for word in "The But a an the and or had has was in on to of".split()]
GLUE += [f" {word}" for word in "for at with her his it that then now who".split()]


def read_rows(
    tokenizer: Qwen2TokenizerFast, texts: Iterable[str], begun: bool = False
) -> dict[str, torch.Tensor]:
    """Documents as rows for training, each ended by <|endoftext|>; begun: and begun with it."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    start = [end] if begun else []
    return pack([[*start, *ids, end] for ids in tokenizer(list(texts))["input_ids"]], ROW)


def inferred_rows(tokenizer: Qwen2TokenizerFast, told: Iterable[Story]) -> dict[str, torch.Tensor]:
    """Stories as rows in which only `Story.inferred` counts, without those that have no such word.

    They are one word in three hundred, and beside the others they teach too little: after some
    seventy thousand stories they were still guessed. Alone they are learned in 300 steps.
    """
    told = [story for story in told if story.inferred]
    encoded = tokenizer([story.text for story in told], return_offsets_mapping=True)
    documents, labels = encoded["input_ids"], []
    for story, ids, offsets in zip(told, documents, encoded["offset_mapping"], strict=True):
        counted = {mention.end for mention in story.inferred}
        pairs = zip(ids, offsets, strict=True)
        labels.append([token if end in counted else -100 for token, (_, end) in pairs])
    return pack(documents, ROW, labels)


def words_of_the_world(tokenizer: Qwen2TokenizerFast) -> list[int]:
    """The tokens that are a name, a thing, a colour … with the space before it."""
    words = [*NAMES, *THINGS, *COLOURS, *SIZES, *NUMBERS, *PLACES, *ANIMALS, *TREATS]
    encoded = tokenizer([f" {word}" for word in words])["input_ids"]
    return sorted({ids[0] for ids in encoded if len(ids) == 1})


def table_rows(
    tokenizer: Qwen2TokenizerFast, n: int, seed: int = 0, words_only: bool = False
) -> dict[str, torch.Tensor]:
    """Rows of n tables, something said again in another way; only what can be looked up counts.

    Half of the tables have words of the world (words_only: all of them), with which looking up is
    learned soon, and half any tokens but special ones, so that it is learned as such. What is said
    again comes in three ways:

    - an echo, "a b c d a b c d": an induction head foresees it;
    - turned, "a b c d d c b a", pairs turned round and in another order: who comes to "d" has to
      see what stood before it;
    - told, "a b the . c d and, d? The d is c": the same, one token later, with glue between.

    Stories need all three, and teach them late. Where the glue is always the same, a model learns
    to look for that, and stories teach it nothing.
    """
    is_, *glue = (tokenizer.encode(text)[0] for text in (" is", *GLUE))
    pools = words_of_the_world(tokenizer), range(len(tokenizer) - len(tokenizer.get_added_vocab()))
    chance = random.Random(f"tables {seed}")

    def some(least: int) -> list[int]:
        return chance.choices(glue, k=chance.randint(least, 4))

    tables, labels = [], []
    for i in range(n):
        pool = pools[0 if words_only else i // 4 % 2]
        kind = ("echo", "turned", "told", "turned")[i % 4]
        count = chance.randint(2, 24 if kind == "echo" else 12)
        drawn = iter(chance.sample(pool, 2 * count))
        pairs = list(zip(drawn, drawn, strict=True))
        first, again, counts = list(chain(*pairs)), [], []
        if kind == "echo":
            again, counts = first, [False] + [True] * (2 * count - 1)
        elif kind == "turned":
            again = [token for a, b in chance.sample(pairs, count) for token in (b, a)]
            counts = [False, True] * count
        else:
            first = some(0) + [token for pair in pairs for token in (*pair, *some(0))]
            for a, b in chance.sample(pairs, count):
                asked = [*some(1), b, *some(1)] if chance.random() < 0.5 else []
                answer = [*asked, *some(0), b, is_, a]
                again += answer
                counts += [False] * (len(answer) - 1) + [True]
        wanted = [token if counted else -100 for token, counted in zip(again, counts, strict=True)]
        tables.append((first + again)[:ROW])
        labels.append(([-100] * len(first) + wanted)[:ROW])
    return pack(tables, ROW, labels)


def talk_rows(
    tokenizer: Qwen2TokenizerFast, talks: Iterable[list[dict[str, str]]]
) -> dict[str, torch.Tensor]:
    """Conversations as rows in which only the assistant's words count; too long ones are left out.

    A conversation cut in two would teach to answer about a story that is not there.
    """
    ids, labels = chat_documents(tokenizer, list(talks))
    fitting = [i for i, conversation in enumerate(ids) if len(conversation) <= ROW]
    return pack([ids[i] for i in fitting], ROW, [labels[i] for i in fitting])
