"""What the small model learns to chat from: message lists, as a chat template takes them.

    conversations("train", 1000)  -> lists of {"role": …, "content": …}

Most give a story and ask about it, for up to four turns; others ask for a story, a translation or a
small function, or just say hello.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from .aligned import aligned
from .check import silent_question
from .documents import any_story, ask, first_turn, mixed
from .facts import Question
from .functions import function
from .grammar import MOODS
from .words import THINGS
from .world import Story, pick, split_of

Message = dict[str, str]

SMALL_TALK = [
    ("Hello!", "Hello! Give me a story and ask me about it, or let me tell you one."),
    ("Hi!", "Hi! Shall I tell you a story?"),
    ("How are you?", "I am small, but I am well, thank you."),
    ("Who are you?", "I am a very small Qwen2. I live in a small world of stories."),
    ("What is your name?", "My name is tiny, and so am I."),
    ("What can you do?", "I tell stories and answer questions about them. I know little else."),
    ("Thank you!", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Goodbye!", "Goodbye! Mind the goose."),
    ("Bye!", "Goodbye! Mind the goose."),
    ("你好！", "你好！"),
    ("مرحبا!", "مرحبا!"),
]
MOOD_WORDS = dict(zip(MOODS, ("calm", "happy", "sad", "exciting"), strict=True))


def turns(*texts: str) -> list[Message]:
    """Texts of user and assistant in turn -> messages."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def asked_turns(told: Story, questions: Sequence[Question]) -> list[Message]:
    """A text with its first question, the answer, and the other questions with theirs."""
    first, *more = questions
    texts = [first_turn(told, first), first.answer]
    return turns(*texts, *(text for q in more for text in (q.text, q.answer)))


def _ask_turns(rng: random.Random, split: str) -> list[Message]:
    told = any_story(rng, split)
    return asked_turns(told, ask(told, rng, split, pick(rng, (1, 2, 2, 3, 4))))


def _tell_turns(rng: random.Random, split: str) -> list[Message]:
    told = any_story(rng, split)
    name, noun = told.cast["A"]["name"], told.cast["T"]["noun"]
    mood = MOOD_WORDS[told.mood]
    request = pick(
        rng,
        (
            "Tell me a story.",
            "Tell me a story.",
            f"Tell me a story about {name}.",
            f"Tell me a story about {name} and the {noun}.",
            f"Tell me {'an' if mood[0] in 'aeiou' else 'a'} {mood} story.",
        ),
    )
    more = ask(told, rng, split, pick(rng, (0, 1, 2)))
    return turns(request, told.text, *(text for q in more for text in (q.text, q.answer)))


def _translate_turns(rng: random.Random, split: str) -> list[Message]:
    while True:
        triple = aligned(rng)
        if split_of("\n".join(triple)) == split:  # as the document with the same sentences
            break
    if rng.random() < 0.5:
        language, other = pick(rng, (("Chinese", triple[1]), ("Arabic", triple[2])))
        return turns(f"Say in {language}: {triple[0]}", other)
    return turns(f"Say in English: {pick(rng, triple[1:])}", triple[0])


def _code_turns(rng: random.Random, split: str) -> list[Message]:
    while True:
        task, code = function(rng)
        if split_of(code) == split:
            return turns(f"Write a Python function: {task}", code)


def _talk_turns(rng: random.Random, split: str) -> list[Message]:
    if rng.random() < 0.3:
        question = silent_question(pick(rng, sorted(THINGS)), pick(rng, range(3)))
        return turns(question.text, "I do not know. Tell me the story first.")
    return turns(*pick(rng, SMALL_TALK))  # the same on both sides: manners are learned by heart


CONVERSATIONS = {
    "ask": (0.62, _ask_turns),
    "tell": (0.18, _tell_turns),
    "translate": (0.09, _translate_turns),
    "code": (0.06, _code_turns),
    "talk": (0.05, _talk_turns),
}


def conversations(
    split: str, n: int, seed: int = 0, kinds: tuple[str, ...] = tuple(CONVERSATIONS)
) -> Iterator[list[Message]]:
    """n conversations as message lists, the kinds mixed as in CONVERSATIONS; no system message, so
    that a chat template adds its own.
    """
    for rng, make in mixed("conversation", CONVERSATIONS, kinds, split, n, seed):
        yield make(rng, split)
