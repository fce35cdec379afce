"""packing.py: no document sees another, every token is used once, batch i depends on i alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_edu import Qwen2ForCausalLM, Qwen2TokenizerFast
from qwen2_edu.packing import Shuffled, chat_documents, in_order, pack
from qwen2_edu.text.templates import QWEN2_TEMPLATE

WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
CONVERSATIONS = [
    [
        {"role": "user", "content": "Who has the ball?"},
        {"role": "assistant", "content": "Mia has it. 🙂"},
        {"role": "user", "content": "And <|im_end|> now?"},
        {"role": "assistant", "content": "Tom."},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Yes"}],
]


# --- pack


def test_rows_by_hand():
    rows = pack([[11, 12], [21, 22, 23, 24, 25], [31, 32, 33], [41]], 5)
    assert rows["input_ids"].tolist() == [
        [21, 22, 23, 24, 25],
        [31, 32, 33, 11, 12],
        [41, 0, 0, 0, 0],
    ]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    x = -100
    assert rows["labels"].tolist() == [[x, 22, 23, 24, 25], [x, 32, 33, x, 12], [x, x, x, x, x]]


def test_a_document_longer_than_a_row_is_cut_into_documents():
    rows = pack([[1, 2, 3, 4, 5, 6, 7, 8]], 3, labels=[[1, -100, 3, 4, 5, 6, 7, 8]])
    assert rows["input_ids"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 0]]
    assert rows["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, 0]]
    assert rows["labels"].tolist() == [[-100, -100, 3], [-100, 5, 6], [-100, 8, -100]]


def test_each_goes_where_least_room_is_left():
    rows = pack([[1] * 6, [2] * 7, [3] * 3], 10)
    assert [Counter(row) for row in rows["input_ids"].tolist()] == [{2: 7, 3: 3}, {1: 6, 0: 4}]


documents_of = st.lists(st.integers(1, 23), min_size=1, max_size=40)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(documents_of, st.integers(1, 12))
def test_every_token_is_used_once_and_nothing_is_cut_without_need(lengths, length):
    # A token tells which document it is from, and where in it it stands.
    documents = [[100 * d + i + 1 for i in range(n)] for d, n in enumerate(lengths)]
    rows = {name: tensor.tolist() for name, tensor in pack(documents, length).items()}
    ids = [i for row in rows["input_ids"] for i in row if i]
    assert sorted(ids) == sorted(i for document in documents for i in document)
    for row, positions, labels in zip(*rows.values(), strict=True):
        assert len(row) == len(positions) == len(labels) == length
        for t, i in enumerate(row):
            at = (i - 1) % 100 % length if i else positions[t]  # a piece begins every `length`
            assert positions[t] == at
            assert labels[t] == (i if i and at else -100)
            assert at == 0 or positions[t - 1] == at - 1
    room = sorted(row.count(0) for row in rows["input_ids"])
    assert len(room) < 2 or room[-1] + room[-2] < length, "two rows would fit into one"


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("stack", [{}, WINDOW], ids=["full", "mixed"])
def test_packed_loss_is_that_of_the_documents_alone(small_config, randomise, stack, backend):
    model = randomise(Qwen2ForCausalLM(small_config(**stack, attn_implementation=backend)))
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 17, 9, 2, 11, 6, 1, 5]
    documents = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]
    rows = pack(documents, 20)
    assert len(rows["input_ids"]) < 4, "nothing was packed"
    with torch.no_grad():
        packed = model(**rows).loss
        total = 0.0
        for document in documents:
            ids = torch.tensor([document])
            if len(document) > 1:
                total += model(input_ids=ids, labels=ids).loss * (len(document) - 1)
    torch.testing.assert_close(packed, total / sum(n - 1 for n in lengths), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("documents", "length", "labels", "message"),
    [
        ([], 4, None, "0 documents"),
        ([[1]], 0, None, "length 0"),
        ([[1], []], 4, None, "document 1 has 0 ids"),
        ([[1], [2]], 4, [[1]], "2 documents, 1 labels"),
        ([[1], [2, 3]], 4, [[1], [2]], "document 1 has 2 ids and 1 labels"),
    ],
)
def test_what_cannot_be_packed(documents, length, labels, message):
    with pytest.raises(ValueError, match=message):
        pack(documents, length, labels)


# --- chat_documents


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Qwen2TokenizerFast.from_pretrained("qwen2")
    tokenizer.chat_template = QWEN2_TEMPLATE
    return tokenizer


def test_only_answers_and_their_ends_count(tokenizer):
    documents, labels = chat_documents(tokenizer, CONVERSATIONS)
    assert [tokenizer.decode(ids) for ids in documents] == [
        tokenizer.apply_chat_template(conversation, tokenize=False)
        for conversation in CONVERSATIONS
    ]
    spoken = [tokenizer.decode([i for i in row if i != -100]) for row in labels]
    assert spoken == ["Mia has it. 🙂<|im_end|>Tom.<|im_end|>", "Yes<|im_end|>"]
    for ids, row in zip(documents, labels, strict=True):
        assert all(label in (i, -100) for i, label in zip(ids, row, strict=True))


def test_a_conversation_without_an_answer(tokenizer):
    with pytest.raises(ValueError, match="conversation 1 has no answer"):
        chat_documents(tokenizer, [CONVERSATIONS[0], CONVERSATIONS[0][:1]])


def test_prompt_tokens_carry_no_gradient(tokenizer, small_config, randomise):
    documents, labels = chat_documents(tokenizer, CONVERSATIONS)
    kinds = {i: n for n, i in enumerate(sorted({i for ids in documents for i in ids}))}
    documents = [[kinds[i] for i in ids] for ids in documents]  # few enough for a small model
    labels = [[kinds.get(i, -100) for i in row] for row in labels]
    rows = pack(documents, 64, labels)
    out = randomise(Qwen2ForCausalLM(small_config())).train()(**rows)
    out.logits.retain_grad()
    out.loss.backward()
    learnt = out.logits.grad.abs().sum(-1) > 0  # (rows, T): does this position learn?
    answers = sum(label != -100 for row in labels for label in row)
    assert int(learnt.sum()) == answers
    assert torch.equal(learnt[:, :-1], rows["labels"][:, 1:] != -100)


# --- batches


def numbered(count):
    return {"input_ids": torch.arange(count)[:, None], "labels": torch.arange(count) * 10}


@pytest.mark.parametrize(("count", "size"), [(6, 2), (7, 3), (3, 8), (1, 1), (1, 3)])
def test_a_round_has_every_row_once(count, size):
    batches = Shuffled(numbered(count), size)
    order = torch.cat([batches[i]["input_ids"][:, 0] for i in range(5 * count)]).tolist()
    assert {len(batches[i]["labels"]) for i in range(9)} == {size}
    for start in range(0, len(order) - count, count):
        assert sorted(order[start : start + count]) == list(range(count))
    assert torch.equal(batches[3]["labels"], batches[3]["input_ids"][:, 0] * 10)


def test_a_batch_depends_on_seed_and_number_alone():
    def order(batches, numbers):
        return {i: batches[i]["labels"].tolist() for i in numbers}

    forward = order(Shuffled(numbered(50), 8, seed=1), range(20))
    torch.manual_seed(99)
    assert order(Shuffled(numbered(50), 8, seed=1), reversed(range(20))) == forward
    assert order(Shuffled(numbered(50), 8, seed=2), range(20)) != forward
    rounds = Shuffled(numbered(50), 50)
    assert not torch.equal(rounds[0]["labels"], rounds[1]["labels"])


def test_in_order():
    batches = in_order(numbered(5), 2)
    assert [batch["labels"].tolist() for batch in batches] == [[0, 10], [20, 30], [40]]


@pytest.mark.parametrize("make", [Shuffled, in_order])
@pytest.mark.parametrize(
    ("rows", "size"),
    [
        ({}, 2),
        (numbered(3), 0),
        (numbered(0), 2),
        ({"input_ids": torch.zeros(3, 2), "labels": torch.zeros(4)}, 2),
    ],
)
def test_rows_that_make_no_batches(make, rows, size):
    with pytest.raises(ValueError, match="all must have as many rows"):
        make(rows, size)
