"""What the evaluation measures, as raw results: answers, stories and losses on held-out texts.

Nothing here judges; `evaluate.py` makes figures of the results and holds them against targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from .. import training
from ..config import Qwen2Config
from ..model import Qwen2ForCausalLM
from ..packing import in_order, pack
from ..tokenizer import TokenizerBase
from .check import check_answer
from .conversations import conversations
from .documents import documents, exam, first_turn
from .facts import Question
from .ngrams import NGrams
from .rows import ROW
from .train import Stage
from .world import normalise, stories

LONGEST_ANSWER, LONGEST_STORY = 64, 300  # new tokens; twice what any right one needs
Track = Callable[[Sequence[Any], str], Iterable[Any]]  # goes through items, showing how far it is


def quietly(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Show nothing."""
    return items


# --- asking --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What the model said, and whether it ended that itself, with <|im_end|>."""

    text: str
    stopped: bool


def reply_to(
    model: Any,
    tokenizer: TokenizerBase,
    talks: Sequence[list[dict[str, str]]],
    *,
    batch_size: int = 50,
    track: Track = quietly,
    what: str = "",
    **options: Any,
) -> list[Reply]:
    """The model's answer to each conversation, generated in left-padded batches.

    Args:
        options: of `generate`.
    """
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # Those of like length together, so that little is padded.
    order = sorted(range(len(talks)), key=lambda i: sum(len(m["content"]) for m in talks[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    replies: dict[int, Reply] = {}
    for batch in track(batches, what):
        prompts = tokenizer.apply_chat_template(
            [talks[i] for i in batch],
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**prompts, repetition_penalty=1.0, **options)
        for i, new in zip(batch, ids[:, prompts.input_ids.shape[1] :].tolist(), strict=True):
            replies[i] = Reply(tokenizer.decode(new, skip_special_tokens=True), end in new)
    return [replies[i] for i in range(len(talks))]


@dataclass(frozen=True)
class Asked:
    """A question that the model was asked.

    turn: from 1. distance: tokens from the first of the evidence to the last of the prompt, from
    which the answer is foreseen; None where the story is silent.
    """

    question: Question
    turn: int
    reply: Reply
    right: bool
    distance: int | None


def ask_questions(
    model: Any,
    tokenizer: TokenizerBase,
    n: int = 500,
    seed: int = 0,
    *,
    turns: int = 2,
    track: Track = quietly,
    what: str = "questions",
) -> list[Asked]:
    """Ask about n held-out stories, one question after the other, and take the likeliest answer.

    The first turn is the story and a question. In later turns what the model itself answered stands
    in the conversation, right or wrong. An answer is right if `check_answer` says so: an exact
    match but for case and the full stop, with the short answer accepted.
    """
    asked = []
    told = [(story, questions, []) for story, questions in exam("heldout", n, seed, turns)]
    for turn in range(turns):
        going = [(s, questions[turn], talk) for s, questions, talk in told if len(questions) > turn]
        for story, question, talk in going:
            says = question.text if turn else first_turn(story, question)
            talk.append({"role": "user", "content": says})
        replies = reply_to(
            model,
            tokenizer,
            [talk for _, _, talk in going],
            track=track,
            what=f"{what}, turn {turn + 1}",
            do_sample=False,
            max_new_tokens=LONGEST_ANSWER,
        )
        for (story, question, talk), reply in zip(going, replies, strict=True):
            distance = None
            if question.evidence is not None:
                distance = tokens_back_to(tokenizer, talk, story.text, question.evidence[0])
            right = check_answer(story, question.text, reply.text)
            asked.append(Asked(question, turn + 1, reply, right, distance))
            talk.append({"role": "assistant", "content": reply.text})
    return asked


def tokens_back_to(
    tokenizer: TokenizerBase, talk: list[dict[str, str]], story: str, character: int
) -> int:
    """How many tokens before the prompt's last stands the token with this character of the story?

    A sliding layer with window w sees it from there if the answer is less than w.
    """
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    place = text.index(story) + character
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return len(offsets) - 1 - next(i for i, (_, end) in enumerate(offsets) if end > place)


def without_window(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """The same parameters in a model whose every layer sees the whole text."""
    changes = {"use_sliding_window": False, "layer_types": None}
    changes["attn_implementation"] = model.config.attn_implementation
    config = Qwen2Config.from_dict(model.config.to_dict(), **changes)
    opened = Qwen2ForCausalLM(config).to(model.device, model.dtype)
    opened.load_state_dict(model.state_dict())
    opened.generation_config = model.generation_config
    return opened.eval()


# --- telling -------------------------------------------------------------------------------------


def tell_stories(
    model: Any,
    tokenizer: TokenizerBase,
    n: int = 200,
    seed: int = 0,
    *,
    as_released: bool = False,
    track: Track = quietly,
) -> list[Reply]:
    """n answers to "Tell me a story.", at temperature 0.7, drawn from the whole distribution: no
    top-k, no top-p. as_released: drawn as the checkpoint's generation config says.
    """
    whole = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return reply_to(
        model,
        tokenizer,
        [[{"role": "user", "content": "Tell me a story."}]] * n,
        track=track,
        what="stories, drawn as in a chat" if as_released else "stories",
        do_sample=True,
        **{} if as_released else whole,
        max_new_tokens=LONGEST_STORY,
        generator=torch.Generator(model.device).manual_seed(seed),
    )


def training_texts(stages: Sequence[Stage]) -> Iterator[str]:
    """Every text of these stages that may be a story, made again: it depends on nothing else.

    A document with questions, and what a user says first, are the story up to an empty line.
    """
    for text in documents("train", sum(stage.documents for stage in stages)):
        yield text.split("\n\n")[0]
    for seed, stage in enumerate(stages):
        yield from (story.text for story in stories("train", stage.inferred, seed))
    talks = [conversations("train", sum(stage.conversations for stage in stages))]
    for seed, stage in enumerate(stages):
        talks.append(conversations("train", stage.told, seed, kinds=("tell",)))
    for talk in chain(*talks):
        for message in talk[:2]:  # a story is given first, or told in the first answer
            yield message["content"].split("\n\n")[0]


def copies(texts: Iterable[str], known: Iterable[str]) -> set[str]:
    """Which of the texts are among the known ones, but for case, spaces and the full stop?"""
    wanted = {normalise(text) for text in texts}
    return {text for text in map(normalise, known) if text in wanted}


# --- foreseeing ----------------------------------------------------------------------------------


def held_out_losses(
    model: Any,
    tokenizer: TokenizerBase,
    n: int = 400,
    seed: int = 0,
    *,
    n_training: int = 40_000,
    track: Track = quietly,
) -> dict[str, float]:
    """Nats per token on n held-out documents: the model beside n-grams that count training texts.

    All see the same tokens, the <|endoftext|> after each document included, and are judged on the
    same: on all but the first of each document.

    Args:
        n_training: documents for the n-grams, the first of those that the model was trained on.

    Returns:
        {"model", "unigram", "3-gram": nats per token, "tokens": how many}
    """

    def pieces(split: str, n: int, seed: int) -> list[list[int]]:
        end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        whole = [[*ids, end] for ids in tokenizer(list(documents(split, n, seed)))["input_ids"]]
        # A longer document is cut, for the model and for the n-grams alike.
        return [ids[i : i + ROW] for ids in whole for i in range(0, len(ids), ROW)]

    held_out, counting = pieces("heldout", n, seed), pieces("train", n_training, 0)
    losses: dict[str, float] = {}
    for name, order in track([("unigram", 1), ("3-gram", 3)], "n-grams"):
        ngrams = NGrams(counting, order, model.config.vocab_size)
        losses[name], losses["tokens"] = ngrams.loss(held_out)
    batches = in_order(pack(held_out, ROW), 16)
    losses["model"] = training.evaluate(model, batches, "fp32")
    assert losses["tokens"] == sum(training.counted_labels(model, batch) for batch in batches)
    return losses
