"""Right answers to the exercises of lesson 12, in several styles; none comes from the solutions."""

from __future__ import annotations

import functools
import itertools
import json
import re

import numpy as np
import torch

from qwen2_edu.course.exercises import exercises_of
from tests.course.right_answers import questions

HEAD = "<|im_start|>assistant\n"

# --- 0, messages to text


def text_loop(messages):
    text = ""
    for m in messages:
        text += "<|im_start|>" + m["role"] + "\n" + m["content"] + "<|im_end|>" + "\n"
    text += HEAD
    return text


def text_reduced(messages):
    return functools.reduce(
        lambda text, m: f"{text}<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n", messages, ""
    ) + "<|im_start|>{}\n".format("assistant")


def text_lines(messages):
    lines = []
    for m in messages:
        lines += [f"<|im_start|>{m['role']}", m["content"] + "<|im_end|>"]
    return "\n".join([*lines, HEAD])


def text_jinja(messages):
    import jinja2

    source = "{% for m in ms %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    return jinja2.Template(source, keep_trailing_newline=True).render(ms=messages) + HEAD


# --- 1, safe ids


def ids_loop(tokenizer, messages):
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = []
    for m in messages:
        ids.append(start)
        for i in tokenizer(f"{m['role']}\n{m['content']}", split_special_tokens=True).input_ids:
            ids.append(i)
        ids.append(end)
        ids += tokenizer.encode("\n")
    ids.append(start)
    return ids + tokenizer.encode("assistant\n")


def ids_by_marks(tokenizer, messages):
    """Render with private characters for the template's own marks, then cut there."""
    text = "".join(f"\ue000{m['role']}\n{m['content']}\ue001\n" for m in messages)
    of = dict(zip("\ue000\ue001", tokenizer.encode("<|im_start|><|im_end|>"), strict=True))
    pieces = re.split("([\ue000\ue001])", text + "\ue000assistant\n")
    plain = functools.partial(tokenizer.encode, split_special_tokens=True)
    return [i for piece in pieces for i in ([of[piece]] if piece in of else plain(piece))]


def ids_numpy(tokenizer, messages):
    return np.array(ids_loop(tokenizer, messages))


def ids_torch(tokenizer, messages):
    rows = [torch.tensor(ids_loop(tokenizer, messages))]
    return torch.cat(rows)


# --- 2, what is called


def calls_by_index(tokenizer, ids):
    opens, closes = (tokenizer.encode(mark)[0] for mark in ("<tool_call>", "</tool_call>"))
    found, at = [], 0
    while opens in ids[at:] and closes in ids[at:]:
        begin = ids.index(opens, at)
        end = ids.index(closes, begin)
        call, at = json.loads(tokenizer.decode(ids[begin + 1 : end])), end + 1
        found.append([call["name"], call["arguments"]])
    return found


def calls_split(tokenizer, ids):
    """Groups between the two kinds of marks; every second one lies within."""
    marks = set(tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"]))
    groups = [
        list(group) for mark, group in itertools.groupby(ids, lambda i: i in marks) if not mark
    ]
    closed = sum(i == max(marks) for i in ids)
    texts = [tokenizer.decode(group) for group in groups]
    calls = [json.loads(text) for text in texts if text.strip().startswith("{")][:closed]
    return [(call["name"], call["arguments"]) for call in calls]


def calls_numpy(tokenizer, ids):
    ids = np.array(ids)
    ends = np.flatnonzero(ids == tokenizer.convert_tokens_to_ids("</tool_call>"))
    begins = np.flatnonzero(ids == tokenizer.convert_tokens_to_ids("<tool_call>"))[: len(ends)]
    spans = zip(begins.tolist(), ends.tolist(), strict=True)
    calls = [json.loads(tokenizer.decode(ids[b + 1 : e].tolist())) for b, e in spans]
    return [tuple(call.values()) for call in calls]


def calls_torch(tokenizer, ids):
    row = torch.tensor(ids)
    opens, closes = tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    ends = (row == closes).nonzero().flatten()
    texts = [tokenizer.decode(row[(row[:e] == opens).nonzero()[-1, 0] + 1 : e]) for e in ends]
    return [(call["name"], call["arguments"]) for call in map(json.loads, texts)]


# --- 3, what counts


def labels_state(ids, head, end):
    found, speaks = [], False
    for i in range(len(ids)):
        if ids[max(i - len(head), 0) : i] == head:
            speaks = True
        found.append(ids[i] if speaks else -100)
        if ids[i] == end:
            speaks = False
    return found


def labels_slices(ids, head, end):
    found, n = [-100] * len(ids), len(head)
    for i in range(len(ids) - n + 1):
        if ids[i : i + n] == head:
            stop = ids.index(end, i + n) + 1 if end in ids[i + n :] else len(ids)
            found[i + n : stop] = ids[i + n : stop]
    return found


def labels_numpy(ids, head, end):
    ids, n = np.array(ids), len(head)
    opens = np.zeros(len(ids) + 1, int)
    for i in range(len(ids) - n + 1):
        opens[i + n] = (ids[i : i + n] == head).all()
    turn = np.cumsum(np.r_[0, ids[:-1] == end])  # no end token within a turn but its last
    speaks = np.array([opens[: i + 1][turn[: i + 1] == turn[i]].any() for i in range(len(ids))])
    return np.where(speaks, ids, -100)


def labels_torch(ids, head, end):
    return torch.tensor(labels_slices(ids, head, end))


# --- 4, what fits


def fit_pop(messages, lengths, limit):
    messages, lengths = list(messages), list(lengths)
    front = [messages.pop(0)] if messages[0]["role"] == "system" else []
    limit -= lengths.pop(0) if front else 0
    while messages and (sum(lengths) > limit or messages[0]["role"] == "assistant"):
        messages.pop(0)
        lengths.pop(0)
    return front + messages


def fit_backwards(messages, lengths, limit):
    front = messages[:1] if messages[0]["role"] == "system" else []
    room = limit - (lengths[0] if front else 0)
    best = len(messages)
    for i in range(len(messages) - 1, len(front) - 1, -1):
        room -= lengths[i]
        if room < 0:
            break
        if messages[i]["role"] == "user":
            best = i
    return front + messages[best:]


def fit_numpy(messages, lengths, limit):
    first = int(messages[0]["role"] == "system")
    rest = np.cumsum(lengths[first:][::-1])[::-1] + sum(lengths[:first])
    fits = (rest <= limit) & [m["role"] == "user" for m in messages[first:]]
    start = first + int(np.argmax(fits)) if fits.any() else len(messages)
    return [*messages[:first], *messages[start:]]


def fit_recursive(messages, lengths, limit):
    if messages[0]["role"] == "system":
        return messages[:1] + fit_recursive(messages[1:], lengths[1:], limit - lengths[0])
    if messages[0]["role"] == "user" and sum(lengths) <= limit:
        return messages
    return fit_recursive(messages[1:], lengths[1:], limit) if len(messages) > 1 else []


RIGHT = {
    "ex12_0": [text_loop, text_reduced, text_lines, text_jinja],
    "ex12_1": [ids_loop, ids_by_marks, ids_numpy, ids_torch],
    "ex12_2": [calls_by_index, calls_split, calls_numpy, calls_torch],
    "ex12_3": [labels_state, labels_slices, labels_numpy, labels_torch],
    "ex12_4": [fit_pop, fit_backwards, fit_numpy, fit_recursive],
}


# --- mistakes that nobody foresaw: refused all the same, and told nothing false


def head_with_role_only(messages):
    return text_loop(messages).replace("user", "human")


def stop_at_first(ids, head, end):
    return [i if i in (end, *range(20, 99)) else -100 for i in ids]


OTHERS = [
    ("ex12_0", head_with_role_only),
    ("ex12_1", lambda tokenizer, messages: tokenizer.encode("Hi")),
    ("ex12_2", lambda tokenizer, ids: [("weather", {})]),
    ("ex12_3", stop_at_first),
    ("ex12_4", lambda messages, lengths, limit: messages),
]
(
    test_right_in_any_style,
    test_every_exercise_is_answered,
    test_other_mistakes_are_shown_a_case,
) = questions("12", RIGHT, OTHERS)


def test_an_argument_that_comes_back_changed_is_refused():
    def pops(messages, lengths, limit):
        kept = fit_pop(messages, lengths, limit)
        messages.clear()
        return kept

    assert "came back changed" in exercises_of("12")["ex12_4"].judge(pops)
