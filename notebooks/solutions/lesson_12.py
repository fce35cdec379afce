"""Solutions to lesson 12. Try first: the checker's hints point further than you might think."""

import json


def my_chatml(messages):
    # A turn is a line with the role, the words as they are, and the end with its newline. Behind
    # the last turn stands the head of the next one, which the model goes on from.
    text = ""
    for message in messages:
        text += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


def my_safe_ids(tokenizer, messages):
    # Control tokens never come out of a text here: their ids are put in by hand. What stands
    # between two of them is encoded as one text, with every control token in it switched off.
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = []
    for message in messages:
        text = message["role"] + "\n" + message["content"]
        ids += [start] + tokenizer.encode(text, split_special_tokens=True) + [end]
        ids += tokenizer.encode("\n")
    return ids + [start] + tokenizer.encode("assistant\n")


def my_calls(tokenizer, ids):
    # Ids tell a call from letters that spell one, so the search comes before the decoding. What is
    # still open at the end was cut off, and must not be run.
    opens, closes = tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    calls, begun = [], None
    for i, token in enumerate(ids):
        if token == opens:
            begun = i + 1
        elif token == closes and begun is not None:
            call = json.loads(tokenizer.decode(ids[begun:i]))
            calls.append((call["name"], call["arguments"]))
            begun = None
    return calls


def my_labels(ids, head, end):
    # Counting begins behind each head of the assistant and stops behind its end token: the model
    # has to learn when to stop, and nothing that it is given.
    labels, i = [-100] * len(ids), 0
    while i < len(ids):
        if ids[i : i + len(head)] == head:
            i += len(head)
            while i < len(ids):
                labels[i] = ids[i]
                i += 1
                if ids[i - 1] == end:
                    break
        else:
            i += 1
    return labels


def my_fit(messages, lengths, limit):
    # Drop the oldest first, and with each question its answer: what is left begins with a user.
    # The system message is set aside, and its tokens are taken off the limit at once.
    first = 1 if messages[0]["role"] == "system" else 0
    room = limit - sum(lengths[:first])
    start = first
    while start < len(messages) and (
        sum(lengths[start:]) > room or messages[start]["role"] != "user"
    ):
        start += 1
    return messages[:first] + messages[start:]


SOLUTIONS = {
    "ex12_0": my_chatml,
    "ex12_1": my_safe_ids,
    "ex12_2": my_calls,
    "ex12_3": my_labels,
    "ex12_4": my_fit,
}
