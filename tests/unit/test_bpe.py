"""Splitting, merging and training, against naive versions, `tokenizers` and `tiktoken`."""

from __future__ import annotations

import itertools
import json

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from qwen2_edu import bpe

common = settings(deadline=None, max_examples=150, derandomize=True)
# Characters that every engine knows: later Unicode versions made letters of unassigned ones.
character = st.characters(exclude_categories=("Cs", "Cn")) | st.sampled_from(" \n\r\t'sSſtlLaé1!")
text_strategy = st.text(character, max_size=60)
# As the released tokenizer.json has it.
RELEASED_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def naive(piece: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    """BPE straight from its definition: the earliest merge that fits, leftmost, until none fits."""
    order = {pair: i for i, pair in enumerate(merges)}
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        fits = [(order[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in order]
        if not fits:
            return parts
        _, i = min(fits)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


merge_lists = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=9)


def build_merges(choices):
    """A list of merges over the letters a, b, c: each joins two tokens made so far."""
    tokens, merges = [b"a", b"b", b"c"], []
    for a, b in choices:
        left, right = tokens[a % len(tokens)], tokens[b % len(tokens)]
        if left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    return merges


def test_the_byte_alphabet_is_the_one_of_tokenizers():
    assert sorted(bpe.BYTE_TO_CHAR.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert bpe.token_to_text(" é\n".encode()) == "ĠÃ©Ċ"
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for byte in range(0x80):
        assert split.pre_tokenize_str(chr(byte))[0][0] == bpe.token_to_text(bytes([byte]))


@common
@given(st.binary())
def test_spelling_a_token_can_be_undone(token):
    assert bpe.text_to_token(bpe.token_to_text(token)) == token


@pytest.mark.parametrize("text", [" ", "a\n", "\xad", "\u0144", "生"])
def test_a_character_that_stands_for_no_byte_is_refused(text):
    with pytest.raises(ValueError, match="stands for no byte"):
        bpe.text_to_token(text)


@common
@given(text_strategy)
@example("a!\r\nb?\n\rI'LL DON'T don'ſ 'S x's\r\n\r\n  y  \t z\u00a0\u00a0w 12½³ 生2")
def test_split_cuts_as_tokenizers_does(text):
    reference = pre_tokenizers.Split(Regex(RELEASED_PATTERN), "isolated")
    pieces = bpe.split(text)
    assert pieces == [piece for piece, _ in reference.pre_tokenize_str(text)]
    assert "".join(pieces) == text


@settings(common, max_examples=400)
@given(merge_lists, st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=30))
def test_ranks_say_what_the_merges_say_or_are_refused(choices, letters):
    merges = build_merges(choices)
    possible = all(naive(a + b, merges[:i]) == [a, b] for i, (a, b) in enumerate(merges))
    if not possible:
        with pytest.raises(ValueError, match="can never happen"):
            bpe.ranks_of(merges)
        return
    ranks = bpe.ranks_of(merges)
    piece = b"".join(letters)
    assert bpe.merge(piece, ranks) == naive(piece, merges)
    assert bpe.merges_of(ranks) == merges


def test_an_impossible_merge_would_have_changed_the_ids():
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")]
    assert naive(b"abc", merges) == [b"ab", b"c"]  # the third merge never happens
    with pytest.raises(ValueError, match="merge 2.*can never happen"):
        bpe.ranks_of(merges)


@pytest.mark.parametrize(
    ("merges", "message"),
    [([(b"a", b"bc")], "no earlier merge makes"), ([(b"a", b"b"), (b"a", b"b")], "never happen")],
)
def test_merges_that_training_cannot_have_made_are_refused(merges, message):
    with pytest.raises(ValueError, match=message):
        bpe.ranks_of(merges)


def test_a_token_that_nothing_leads_to_is_refused():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    with pytest.raises(ValueError, match="no merge makes"):
        bpe.merges_of(ranks)


@pytest.fixture(scope="module")
def whole_text(slow):
    """tiktoken with the released vocabulary, merging a text as one piece."""
    return tiktoken.Encoding(
        "whole", pat_str=r"(?s).+", mergeable_ranks=slow.vocab, special_tokens={}
    )


@common
@given(text_strategy)
def test_merge_equals_tiktoken(slow, whole_text, text):
    ids = [slow.vocab[token] for token in bpe.merge(text.encode(), slow.vocab)]
    assert ids == whole_text.encode_ordinary(text)


class CountedRank(int):
    """A rank that counts how often it is compared."""

    count = 0

    def __lt__(self, other):
        CountedRank.count += 1
        return int.__lt__(self, other)

    def __gt__(self, other):
        CountedRank.count += 1
        return int.__gt__(self, other)


class CountedRanks(dict):
    """Ranks that count how often one is looked up."""

    count = 0

    def get(self, token, default=None):
        self.count += 1
        rank = super().get(token)
        return default if rank is None else CountedRank(rank)


@pytest.fixture(scope="module")
def counted(slow):
    return CountedRanks(slow.vocab)


UNITS = ["a", " ", "\n", "!", "ab", "生", "é", "\u0301", "internationalisation", "naïve café, 生活"]


@pytest.mark.parametrize("unit", UNITS)
def test_the_work_of_merging_grows_with_the_length_not_its_square(counted, unit):
    for n in (2_000, 20_000):
        piece = (unit * n).encode()[:n]
        counted.count = CountedRank.count = 0
        tokens = bpe.merge(piece, counted)
        assert b"".join(tokens) == piece
        looked_up, compared = counted.count, CountedRank.count
        assert n < looked_up <= 5 * n  # the most is 4.5 n, for "\n"
        assert compared <= 4 * n  # 3.0 n, for " "; looking through all each time: hundreds of n


# ------------------------------------------------------------------------------------ training

TEXTS = [
    "the cat sat on the mat, the cat sat.",
    "le chat était là — là, 生活生活",
    "aaaa aaaa aaa",
] * 3


def their_merges(texts, number):
    """What `tokenizers` learns from the same pieces."""
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + number, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    theirs.train_from_iterator(texts, trainer)
    merges = json.loads(theirs.to_str())["model"]["merges"]
    return [tuple(bpe.text_to_token(half) for half in merge) for merge in merges]


def test_training_learns_what_tokenizers_learns():
    vocab, merges = bpe.train(TEXTS, 256 + 30)
    assert merges == their_merges(TEXTS, 30)
    assert len(vocab) == 286
    assert list(vocab.values()) == list(range(286))


@settings(common, max_examples=60)
@given(st.lists(st.text("ab c", max_size=30), min_size=1, max_size=5))
def test_ties_are_broken_as_in_tokenizers(texts):
    theirs = their_merges(texts, 1_000)
    if theirs:
        _, merges = bpe.train(texts, 256 + len(theirs))
        assert merges == theirs


def test_training_twice_gives_the_same_whatever_the_order_of_texts():
    assert bpe.train(TEXTS, 290) == bpe.train(TEXTS[::-1], 290)


def test_special_tokens_are_neither_learned_from_nor_counted_twice():
    texts = ["<|end|>ab<|end|>ab<|end|>ab cd cd"]
    vocab, merges = bpe.train(texts, 260, ["<|end|>"])
    assert len(vocab) == 259
    assert not any(b"<" in a + b or b"|" in a + b for a, b in merges)
    assert merges == their_merges(["ab", "ab", "ab cd cd"], 3)


def test_training_learns_from_text_in_nfc():
    assert bpe.train(["e\u0301te\u0301 e\u0301te\u0301"], 258) == bpe.train(["été été"], 258)


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["ab ab"], 255, "vocab_size 255 is too small"),
        (["ab ab"], 1000, "a vocab_size of at most 257"),
        ([], 300, "give more text, or"),
    ],
)
def test_what_cannot_be_trained_is_said(texts, size, message):
    with pytest.raises(ValueError, match=message):
        bpe.train(texts, size)
