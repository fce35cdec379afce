"""Two tasks for heads on the small world: the mood of a story, and what its words name.

rows = mood_rows(tokenizer, stories("train", 1200))
model = Qwen2ForSequenceClassification.from_pretrained("tiny", num_labels=len(MOODS))
fine_tune(model, rows)
accuracy(model, mood_rows(tokenizer, stories("heldout", 400)))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..packing import Shuffled, in_order
from ..tokenizer import TokenizerBase
from ..training import TrainingSettings, train
from .grammar import MOODS
from .world import Story

TAGS = ["none", "person", "place", "thing"]
BATCH = 16  # stories a step
# A few steps: enough for what can read already, too few to learn to read.
RECIPE = TrainingSettings(steps=75, learning_rate=7e-4, warmup_steps=10, log_every=5)


def mood_rows(tokenizer: TokenizerBase, stories: Iterable[Story]) -> dict[str, Tensor]:
    """Stories with the number of their mood in MOODS as label.

    Returns:
        input_ids and attention_mask, (rows, T), padded on the right, and labels, (rows,).
    """
    stories = list(stories)
    texts = [story.text for story in stories]
    rows = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return {**rows, "labels": torch.tensor([MOODS.index(story.mood) for story in stories])}


def tag_rows(tokenizer: TokenizerBase, stories: Iterable[Story]) -> dict[str, Tensor]:
    """Stories with a label for each token: the number in TAGS of the name that it is part of.

    A token counts as part of a name if it has any character of it: " Mia" has, space or not.

    Returns:
        input_ids, attention_mask and labels, (rows, T), padded on the right; the label of padding
        is -100, not counted.
    """
    stories = list(stories)
    texts = [story.text for story in stories]
    rows = tokenizer(texts, padding=True, padding_side="right", return_offsets_mapping=True)
    labels = []
    for story, offsets in zip(stories, rows.pop("offset_mapping"), strict=True):
        label_at = [0] * len(story.text)  # of each character
        for tag in story.tags:
            label_at[tag.start : tag.end] = [TAGS.index(tag.label)] * (tag.end - tag.start)
        labels.append([max(label_at[a:b]) if a < b else -100 for a, b in offsets])
    return {name: torch.tensor(column) for name, column in {**rows, "labels": labels}.items()}


def fine_tune(
    model: nn.Module,
    rows: Mapping[str, Tensor],
    settings: TrainingSettings = RECIPE,
    *,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Train trunk and head together on labelled rows; the log of `training.train`."""
    return train(model, Shuffled(rows, BATCH), settings, progress=progress)


@torch.no_grad()
def predictions(model: nn.Module, rows: Mapping[str, Tensor]) -> Tensor:
    """The likeliest label of each row, (rows,), or of each token, (rows, T)."""
    found = []
    for batch in in_order(rows, 64):
        inputs = {name: t.to(model.device) for name, t in batch.items() if name != "labels"}
        found.append(model(**inputs).logits.argmax(-1).cpu())
    return torch.cat(found)


def accuracy(model: nn.Module, rows: Mapping[str, Tensor]) -> float:
    """The share of rows, or of counted tokens, that get the right label."""
    counted = rows["labels"] != -100
    return float((predictions(model, rows) == rows["labels"])[counted].float().mean())


def tag_f1(model: nn.Module, rows: Mapping[str, Tensor]) -> float:
    """Micro F1 over tokens that are part of a name, or were taken for one; see `micro_f1`."""
    return micro_f1(predictions(model, rows), rows["labels"])


def micro_f1(found: Tensor, labels: Tensor) -> float:
    """F1 of all labels but 0 ("none") taken together, token by token; -100 does not count.

    Precision is how much of what was tagged has the right tag, recall how much of what should be
    tagged has. F1 is their harmonic mean, 2 * right / (tagged + should be). So the many tokens that
    are rightly left alone raise no score.
    """
    counted = labels != -100
    found, labels = found[counted], labels[counted]
    right = int(((found == labels) & (labels > 0)).sum())
    tagged, should = int((found > 0).sum()), int((labels > 0).sum())
    return 2 * right / (tagged + should) if tagged + should else 1.0
