"""Rows of tokens to one batch: truncating, padding, tensors. Options as in transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..checks import Range, check_numbers, checked, one_of, warn_caller

NO_LIMIT = int(1e30)  # model_max_length of a tokenizer that does not say, as in transformers
SIDES = ("right", "left")
LENGTHS = {"max_length": Range(0, 2**53, True), "pad_to_multiple_of": Range(1, 2**20, True)}
BATCH_OPTIONS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of")
BATCH_OPTIONS += ("return_tensors", "return_attention_mask")  # what callers may ask of `batch`
# What stands at padding, besides the padding token; other entries of a row are left as they are.
FILLERS = {"attention_mask": 0, "offset_mapping": (0, 0), "special_tokens_mask": 1}
FILLERS |= {"assistant_masks": 0, "token_type_ids": 0, "word_ids": None}


@checked
class BatchEncoding(dict):
    """A result of tokenizing: `result["input_ids"]`, `result.input_ids`, `model(**result)`."""

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word, after `is_split_into_words=True`."""
        if "_words" not in self.__dict__:
            raise ValueError("there are word_ids of texts given as words, is_split_into_words=True")
        rows = len(self._words)
        check_numbers({"batch_index": batch_index}, {"batch_index": Range(-rows, rows - 1, True)})
        return self._words[batch_index]

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no {name!r} here, only {', '.join(self)}")

    def to(self, device: str | int | torch.device) -> BatchEncoding:
        """Move the tensors in here to a device; returns this same object."""
        tensors = {n: value for n, value in self.items() if isinstance(value, torch.Tensor)}
        try:
            self.update({name: value.to(device) for name, value in tensors.items()})
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None
        return self


def batch(
    tokenizer: Any,
    rows: Sequence[Mapping[str, list]],
    single: bool,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
    padding: bool | str = False,
    padding_side: str | None = None,
    truncation: bool | str | None = None,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    return_tensors: str | None = None,
    return_attention_mask: bool = True,
) -> BatchEncoding:
    """Cut and pad rows to the lengths asked for, in tokens, and put them together by name.

    Args:
        tokenizer: knows the padding token, the sides to pad and to cut, and the longest input.
        rows: for each text its `input_ids`, and other lists of the same length.
        single: there is one row, and it shall come back as such, unless as a tensor.
        before, after: ids to put around each row; they count for the lengths.
        padding: True or "longest" = to the longest row; "max_length"; False = not at all.
        padding_side: "left", as generation needs it, or "right"; None = the tokenizer's.
        truncation: to `max_length`, else `model_max_length`; None = to `max_length`, unless padded.
        return_tensors: "pt" for tensors (B, T), "np" for arrays; None for lists.
    """
    cuts = (True, "longest_first", "only_first")
    one_of("truncation", truncation, (*cuts, False, None, "do_not_truncate"))
    one_of("padding", padding, (True, False, "longest", "max_length", "do_not_pad"))
    side = tokenizer.padding_side if padding_side is None else padding_side
    one_of("padding_side", side, SIDES)
    one_of("return_tensors", return_tensors, ("pt", "np", None))
    check_numbers({"max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of}, LENGTHS)
    limit = tokenizer.model_max_length if max_length is None else max_length
    by_default = truncation is None and padding is False and max_length is not None
    cut = truncation in cuts or by_default
    if max_length is not None and not cut and padding in (True, "longest"):
        what = f"max_length={max_length} has no effect with padding={padding!r} and no truncation"
        warn_caller(f"{what}: add truncation=True, or use padding='max_length'")
    if cut:
        right = tokenizer.truncation_side == "right"
        room = max(limit - len(before) - len(after), 0)
        for i, row in enumerate(rows):
            first = 0 if right else max(len(row["input_ids"]) - room, 0)
            rows[i] = {name: values[first : first + room] for name, values in row.items()}
    for row in rows if before or after else ():
        for name, values in row.items():
            head, tail = ([FILLERS.get(name, 0)] * len(ids) for ids in (before, after))
            ids = name == "input_ids"
            row[name] = [*(before if ids else head), *values, *(after if ids else tail)]
    if return_attention_mask:  # 1 for a token, 0 for padding
        rows = [{"attention_mask": [1] * len(row["input_ids"])} | row for row in rows]
        rows = [{"input_ids": row["input_ids"]} | row for row in rows]

    if padding not in (False, "do_not_pad"):
        if tokenizer.pad_token_id is None:
            raise ValueError("no padding token: set tokenizer.pad_token = tokenizer.eos_token")
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        width = limit if padding == "max_length" else longest
        if width >= NO_LIMIT:
            raise ValueError("padding='max_length' needs max_length: this tokenizer has none")
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        fillers = {**FILLERS, "input_ids": tokenizer.pad_token_id}
        for row in rows:
            for name, values in ((n, list(v)) for n, v in row.items() if n in fillers):
                fill = [fillers[name]] * (width - len(values))
                row[name] = values + fill if side == "right" else fill + values

    nothing = ["input_ids", "attention_mask"] if return_attention_mask else ["input_ids"]
    names = rows[0] if rows else nothing
    columns = {name: [row[name] for row in rows] for name in names}
    words = columns.pop("word_ids", None)
    if return_tensors is None:
        columns = {name: column[0] if single else column for name, column in columns.items()}
    else:
        lengths = {len(row["input_ids"]) for row in rows}
        if len(lengths) > 1:
            few, many = min(lengths), max(lengths)
            raise ValueError(f"rows of {few} to {many} tokens make no tensor: use padding=True")
        known = {"input_ids", *FILLERS}
        for name, column in columns.items():
            tensor = torch.tensor(column, dtype=torch.long if name in known else None)
            columns[name] = tensor.numpy() if return_tensors == "np" else tensor
    result = BatchEncoding(columns)
    if words is not None:
        result.__dict__["_words"] = words
    return result
