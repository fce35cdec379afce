"""What is a trained trunk worth? Two heads on the shipped checkpoint, and on random weights.

Each is trained on the same stories for the same few steps, then judged on held-out stories: the
mood of a story by accuracy, tags of its tokens by micro F1 over tokens that name something.

    python benchmarks/heads.py [--model tiny] [--threads 2] [--json file]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import qwen2_edu
from qwen2_edu import Qwen2ForSequenceClassification, Qwen2ForTokenClassification
from qwen2_edu.tiny import heads
from qwen2_edu.tiny.grammar import MOODS
from qwen2_edu.tiny.world import stories

TARGET = 0.95
# name -> class, labels, rows from stories, score
TASKS = {
    "mood, accuracy": (Qwen2ForSequenceClassification, MOODS, heads.mood_rows, heads.accuracy),
    "tags, micro F1": (Qwen2ForTokenClassification, heads.TAGS, heads.tag_rows, heads.tag_f1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a built-in name or a folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=heads.RECIPE.steps)
    parser.add_argument("--held-out", type=int, default=500, help="stories to judge on")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", ".*newly initialised")  # a head is, and is trained at once

    figures = compare(arguments.model, arguments.steps, arguments.held_out)
    figures["machine"] = f"CPU, {arguments.threads} threads"
    figures["versions"] = f"torch {torch.__version__}"
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def compare(name_or_path: str, steps: int, n_held_out: int) -> dict:
    """Score and seconds of training, by task and by what the trunk started from."""
    tokenizer = qwen2_edu.AutoTokenizer.from_pretrained(name_or_path)
    config = qwen2_edu.AutoConfig.from_pretrained(name_or_path)
    settings = replace(heads.RECIPE, steps=steps)
    told = list(stories("train", steps * heads.BATCH))  # each is read once
    unseen = list(stories("heldout", n_held_out))
    tasks: dict[str, dict] = {}
    for task, (cls, labels, rows, score) in TASKS.items():
        train, held_out = rows(tokenizer, told), rows(tokenizer, unseen)
        names = dict(enumerate(labels))
        starts = {
            "checkpoint": lambda cls=cls, names=names: cls.from_pretrained(
                name_or_path, dtype="float32", id2label=names
            ),
            "random weights": lambda cls=cls, names=names: cls(
                type(config)(**config.to_dict() | {"id2label": names})
            ),
        }
        tasks[task] = {}
        for start, make in starts.items():
            torch.manual_seed(0)
            model = make()
            began = time.perf_counter()
            heads.fine_tune(model, train, settings, progress=True)
            seconds = time.perf_counter() - began
            tasks[task][start] = {"score": score(model, held_out), "seconds": seconds}
    return {"tasks": tasks, "steps": steps, "held-out stories": n_held_out}


def report(figures: dict) -> None:
    steps, held_out = figures["steps"], figures["held-out stories"]
    print(
        f"{steps} steps of {heads.BATCH} training stories, judged on {held_out} held-out stories,"
    )
    print(f"{figures['machine']}, {figures['versions']}")
    print(f"{'':18}{'from':18}{'held out':>10}{'training':>12}")
    for task, starts in figures["tasks"].items():
        for start, result in starts.items():
            score, seconds = result["score"], result["seconds"]
            verdict = ""
            if start == "checkpoint":
                verdict = "  PASS" if score >= TARGET and seconds <= 60 else "  MISS"
            print(f"{task:18}{start:18}{score:>9.1%}{seconds:>10.1f} s{verdict}")


if __name__ == "__main__":
    main()
