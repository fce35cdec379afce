"""The measures measure: a perfect answerer gets full marks, a broken one does not, and what is
compared is comparable.
"""

from __future__ import annotations

import json
import math
from itertools import chain

import pytest
import torch
import typer
from typer.testing import CliRunner

from qwen2_edu import (
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2TokenizerFast,
    bpe,
)
from qwen2_edu.behaviour import HeadScores
from qwen2_edu.text.templates import QWEN2_TEMPLATE
from qwen2_edu.tiny import evaluate as ev
from qwen2_edu.tiny import heads, measure
from qwen2_edu.tiny.check import check_story, find_question
from qwen2_edu.tiny.conversations import conversations
from qwen2_edu.tiny.documents import documents, exam
from qwen2_edu.tiny.facts import Question
from qwen2_edu.tiny.grammar import MOODS
from qwen2_edu.tiny.ngrams import NGrams
from qwen2_edu.tiny.train import Stage
from qwen2_edu.tiny.world import stories, story
from qwen2_edu.training import TrainingSettings

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer():
    talk = (m["content"] for talk in conversations("train", 100) for m in talk)
    vocab, merges = bpe.train(chain(documents("train", 200), talk), 700, special_tokens=CONTROLS)
    added = {len(vocab) + i: token for i, token in enumerate(CONTROLS)}
    return Qwen2TokenizerFast(
        vocab,
        merges,
        added_tokens=added,
        chat_template=QWEN2_TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="module")
def tiny(tokenizer, small_config, randomise):
    """`tiny(cls, **changes)`: a small random model over this vocabulary."""

    def make(cls=Qwen2ForCausalLM, **changes):
        end, _, im_end = range(len(tokenizer) - 3, len(tokenizer))
        ids = {"bos_token_id": end, "eos_token_id": [im_end, end], "pad_token_id": end}
        fields = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, **ids}
        return randomise(cls(small_config(**{**fields, **changes})))

    return make


class Answerer:
    """Answers as a model would that knows: it reads the prompt back and asks the checker."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, change=lambda answer, question: answer, stops=lambda n: True):
        self.tokenizer, self.change, self.stops, self.count = tokenizer, change, stops, 0
        self.calls = []

    def generate(self, input_ids, attention_mask, **options):
        assert attention_mask[:, -1].all()  # padded on the left
        self.calls.append({"rows": len(input_ids), **options})
        answers = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            said = self.tokenizer.decode(ids[mask.bool()]).split("<|im_start|>")
            assert said[-1] == "assistant\n"
            users = [s[5:].removesuffix("<|im_end|>\n") for s in said if s.startswith("user\n")]
            question = users[-1].split("\n\n")[-1]
            if question == "Tell me a story.":
                answer = story(self.count, "heldout").text
            else:
                told = users[0].split("\n\n")[0]
                answer = self.change(find_question(told, question).answer, question)
            end = "<|im_end|>" if self.stops(self.count) else ""
            answers.append(self.tokenizer.encode(answer + end))
            self.count += 1
        new = torch.full((len(answers), max(map(len, answers))), self.tokenizer.pad_token_id)
        for row, ids in zip(new, answers, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return torch.cat([input_ids, new], dim=1)


# --- questions -----------------------------------------------------------------------------------


def by_name(figures):
    return {figure.name.strip(): figure for figure in figures}


def test_a_perfect_answerer_gets_full_marks(tokenizer):
    model = Answerer(tokenizer)
    asked = measure.ask_questions(model, tokenizer, 30)
    figures = by_name(ev.question_figures(asked))
    for name in ("first turn", "second turn, after its own first"):
        assert (figures[name].value, figures[name].of, figures[name].met) == (1, 30, True)
    assert all(call["do_sample"] is False for call in model.calls)
    assert all(call["repetition_penalty"] == 1.0 for call in model.calls)
    stops = by_name(ev.stop_figures({"turn 1": [a.reply for a in asked]}))
    assert stops["answers ended with <|im_end|>"].met
    # These are the questions of the exam, in its order.
    expected = [questions[0].text for _, questions in exam("heldout", 30)]
    assert [a.question.text for a in asked[:30]] == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda answer, question: "",
        lambda answer, question: "Mia.",
        lambda answer, question: answer + " And more.",
        lambda answer, question: question,
    ],
)
def test_a_broken_answerer_does_not(tokenizer, change):
    asked = measure.ask_questions(Answerer(tokenizer, change), tokenizer, 12, turns=1)
    figure = by_name(ev.question_figures(asked))["first turn"]
    assert figure.value < 0.5 and figure.met is False


def test_one_kind_that_fails_shows_by_kind_and_by_turn(tokenizer):
    wrong = lambda answer, question: "No." if question.startswith("What colour") else answer  # noqa: E731
    asked = measure.ask_questions(Answerer(tokenizer, wrong), tokenizer, 40)
    assert all(
        a.right == (a.question.kind != "colour") or a.question.kind == "silence" for a in asked
    )
    figures = by_name(ev.question_figures(asked))
    assert figures["colour"].value == 0 and figures["size"].value == 1
    kinds = [f for f in figures.values() if f.least is None]
    assert sum(f.of for f in kinds) == 40  # of first turns
    assert sum(f.value * f.of for f in kinds) == pytest.approx(40 * figures["first turn"].value)


def test_the_second_question_stands_behind_the_models_own_answer(tokenizer, monkeypatch):
    heard = []

    def reply_to(model, tokenizer, talks, **options):
        heard.extend([[dict(message) for message in talk] for talk in talks])
        return [measure.Reply("Who knows?", True)] * len(talks)

    monkeypatch.setattr(measure, "reply_to", reply_to)
    asked = measure.ask_questions(None, tokenizer, 3)
    assert [a.right for a in asked] == [False] * 6
    for first, second in zip(heard[:3], heard[3:], strict=True):
        assert second[:1] == first
        assert second[1] == {"role": "assistant", "content": "Who knows?"}
        assert second[2]["role"] == "user" and "\n" not in second[2]["content"]


def test_who_does_not_stop_is_noticed(tokenizer):
    model = Answerer(tokenizer, stops=lambda n: n % 10 != 0)
    asked = measure.ask_questions(model, tokenizer, 50, turns=1)
    assert all(a.right for a in asked)  # the text is right all the same
    figure = by_name(ev.stop_figures({"turn 1": [a.reply for a in asked]}))["turn 1"]
    assert figure.value == 0.9
    assert not by_name(ev.stop_figures({"": [a.reply for a in asked]}))[
        "answers ended with <|im_end|>"
    ].met


def test_batches_change_no_answer(tokenizer, tiny):
    model = tiny()
    talks = [[{"role": "user", "content": t}] for t in ("Hi!", "Who has the ball now?", "Where?")]
    options = {"do_sample": False, "max_new_tokens": 8}
    together = measure.reply_to(model, tokenizer, talks, **options)
    alone = [measure.reply_to(model, tokenizer, [talk], **options)[0] for talk in talks]
    in_pairs = measure.reply_to(model, tokenizer, talks, batch_size=2, **options)
    assert together == alone == in_pairs
    assert len({reply.text for reply in together}) == 3


# --- the window ----------------------------------------------------------------------------------


def test_distance_is_the_distance_of_the_visibility_rule(tokenizer, tiny):
    """One sliding layer sees a token from the prompt's end iff its distance is below the window."""
    told = next(stories("heldout", 1))
    talk = [{"role": "user", "content": f"{told.text}\n\nWho?"}]
    prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt")
    ids = prompt.input_ids
    for character in (0, 25, len(told.text) // 2, len(told.text) - 1):
        distance = measure.tokens_back_to(tokenizer, talk, told.text, character)
        at = ids.shape[1] - 1 - distance
        before, upto = (len(tokenizer.decode(ids[0, :n])) for n in (at, at + 1))
        place = tokenizer.decode(ids[0]).index(told.text) + character
        assert before <= place < upto
        other = ids.clone()
        other[0, at] = (ids[0, at] + 1) % 600
        for window, sees in ((distance, False), (distance + 1, True)):
            model = tiny(
                num_hidden_layers=1, use_sliding_window=True, max_window_layers=0,
                sliding_window=window,
            )  # fmt: skip
            with torch.no_grad():
                a, b = (model(i, logits_to_keep=1).logits for i in (ids, other))
            assert torch.equal(a, b) is not sees


def test_without_window(tiny):
    model = tiny(use_sliding_window=True, max_window_layers=1, sliding_window=7)
    full = tiny()  # the same parameters: the seed is the same
    opened = measure.without_window(model)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, full(ids).logits)
        assert torch.equal(opened(ids[:, :7]).logits, model(ids[:, :7]).logits)
        assert not torch.allclose(opened(ids).logits[:, -1], model(ids).logits[:, -1])
    assert model.config.use_sliding_window and not opened.config.use_sliding_window


def test_near_and_far_are_kept_apart():
    def asked(distance, right, turn=1):
        question = Question("", "", "", "holder", None if distance is None else (0, 1))
        return measure.Asked(question, turn, measure.Reply("", True), right, distance)

    every = [asked(63, True), asked(64, False), asked(100, True), asked(None, False)]
    figures = ev.window_figures(64, {"as trained": [*every, asked(10, False, turn=2)]})
    assert [(f.value, f.of) for f in figures] == [(1, 1), (0.5, 2)]


# --- stories -------------------------------------------------------------------------------------


def test_valid_stories_of_an_answerer(tokenizer):
    model = Answerer(tokenizer)
    told = measure.tell_stories(model, tokenizer, 60)
    figures = by_name(ev.story_figures(told, set(), told))
    assert [figures[n].value for n in ("valid", "distinct", "copies of a training story")] == [
        1,
        1,
        0,
    ]
    assert [figure.met for figure in figures.values()] == [True, None, True, True]
    assert [call["rows"] for call in model.calls] == [50, 10]
    for call in model.calls:
        chosen = (
            call["do_sample"],
            call["temperature"],
            call["top_k"],
            call["top_p"],
            call["min_p"],
        )
        assert chosen == (True, 0.7, 0, 1.0, 0.0)
    assert model.calls[0]["generator"] is model.calls[1]["generator"]  # or batches would be alike


def test_stories_as_in_a_chat_are_drawn_as_the_checkpoint_says(tokenizer):
    model = Answerer(tokenizer)
    told = measure.tell_stories(model, tokenizer, 10, as_released=True)
    assert model.calls[0]["do_sample"] and not {"temperature", "top_k", "top_p"} & set(
        model.calls[0]
    )
    bad = [measure.Reply("No story.", True)] * 10
    chatted = "as in a chat: top-k and top-p as released"
    assert by_name(ev.story_figures(bad, set(), told))[chatted].value == 1
    assert by_name(ev.story_figures(told, set(), bad))[chatted].value == 0


def test_stories_are_drawn_from_the_seed(tokenizer, tiny, monkeypatch):
    monkeypatch.setattr(measure, "LONGEST_STORY", 6)
    model = tiny()
    once, again, other = (measure.tell_stories(model, tokenizer, 4, seed) for seed in (0, 0, 1))
    assert once == again != other
    assert len({reply.text for reply in once}) == 4


def test_invalid_equal_and_copied_stories_are_counted():
    good = [s.text for s in stories("heldout", 8)]
    texts = [*good[:7], good[0], good[1] + " The end.", good[2].replace(".", "", 1)]
    replies = [measure.Reply(text, True) for text in texts]
    figures = by_name(ev.story_figures(replies, {good[0].lower().rstrip(".")}, replies))
    assert figures["valid"].value == 0.8 and figures["valid"].met is False
    assert figures["distinct"].value == 0.9 and figures["distinct"].met is False
    assert figures["copies of a training story"].value == 2
    assert figures["copies of a training story"].met is False


def test_planted_copies_are_found():
    settings = TrainingSettings(1)
    stages = [
        Stage(settings, documents=200),
        Stage(settings, documents=100, conversations=100, told=30, inferred=20),
    ]
    known = list(measure.training_texts(stages))
    assert len(known) == 300 + 20 + 2 * 130
    sound = [text for text in known if not check_story(text)]
    assert len(sound) > 250
    read = [text.split("\n\n")[0] for text in documents("train", 300, kinds=("story", "asked"))]
    given = [t[0]["content"].split("\n\n")[0] for t in conversations("train", 100, kinds=("ask",))]
    told = [t[1]["content"] for t in conversations("train", 100, kinds=("tell",))]
    for texts in (read, given, told):  # the same texts come when all kinds are mixed
        assert set(texts) & set(known)
    asked_for = conversations("train", 30, seed=1, kinds=("tell",))
    assert {talk[1]["content"] for talk in asked_for} <= set(known)
    assert {story.text for story in stories("train", 20, seed=1)} <= set(known)
    planted = [sound[0], sound[-1].upper(), "  ".join(sound[7].split())]
    fresh = [s.text for s in stories("heldout", 20)]
    assert measure.copies(fresh + planted, known) == {measure.normalise(text) for text in planted}
    assert not measure.copies(fresh, known)


# --- losses --------------------------------------------------------------------------------------


def test_a_trigram_by_hand():
    model = NGrams([[0, 1, 2], [0, 1, 3], [0, 1, 2]], n=3, vocab_size=4)
    # Counted tokens: 1 2 1 3 1 2. After nothing: 6 tokens of 3 kinds; after 1: 3 of 2 kinds, 2 2 3.
    unigram = (2 + 3 / 4) / (6 + 3)
    bigram = (2 + 2 * unigram) / (3 + 2)
    trigram = (2 + 2 * bigram) / (3 + 2)  # after 0 1 as after 1: 2 3 2
    assert model.probability([0, 1], 2) == pytest.approx(trigram)
    assert model.probability([3, 3, 0, 1], 2) == pytest.approx(trigram)  # only two count
    assert model.probability([1], 2) == pytest.approx(bigram)
    assert model.probability([3, 1], 2) == pytest.approx(bigram)  # 3 1 was never seen
    assert model.probability([], 2) == pytest.approx(unigram)
    assert NGrams([[0, 1, 2]], 1, 4).probability([0, 1], 2) == pytest.approx((1 + 2 / 4) / (2 + 2))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_probabilities_sum_to_one(n, tokenizer):
    ids = tokenizer(list(documents("train", 30)))["input_ids"]
    model = NGrams(ids, n, len(tokenizer))
    for context in ([], [5], ids[0][:2], ids[1][3:5], [1, 2], [ids[0][1], 699], [0, ids[0][0]]):
        total = math.fsum(model.probability(context, w) for w in range(len(tokenizer)))
        assert total == pytest.approx(1, abs=1e-9)


def test_losses_of_the_same_tokens(tokenizer, tiny):
    model = tiny()
    with torch.no_grad():  # every token equally likely
        model.lm_head.weight.zero_()
    losses = measure.held_out_losses(model, tokenizer, 12, n_training=150)
    assert losses["model"] == pytest.approx(math.log(len(tokenizer)), abs=1e-4)
    assert losses["3-gram"] < losses["unigram"] < losses["model"]
    lengths = [len(ids) + 1 for ids in tokenizer(list(documents("heldout", 12)))["input_ids"]]
    assert max(lengths) > measure.ROW  # one is cut
    assert losses["tokens"] == sum(
        n - math.ceil(n / measure.ROW) for n in lengths
    )  # all but the first


def test_the_models_loss_is_that_of_each_document_alone(tokenizer, tiny):
    model = tiny()
    total, n = 0.0, 0
    for text in documents("heldout", 6):
        ids = torch.tensor([tokenizer.encode(text + "<|endoftext|>")])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        n += ids.shape[1] - 1
    losses = measure.held_out_losses(model, tokenizer, 6, n_training=20)
    assert losses["model"] == pytest.approx(total / n, rel=1e-5) and losses["tokens"] == n


# --- figures and command -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (0.9, {"least": 0.9}, True),
        (0.899, {"least": 0.9}, False),
        (0.0, {"most": 0}, True),
        (1.0, {"most": 0}, False),
        (float("nan"), {"least": 0.9}, False),
        (float("nan"), {"most": 0.9}, False),
        (0.1, {}, None),
    ],
)
def test_targets(value, target, met):
    assert ev.Figure("", "", value, **target).met is met


def test_targets_of_losses_and_heads():
    fine, poor = ({"model": m, "unigram": 5.0, "3-gram": 2.0, "tokens": 9} for m in (1.4, 1.6))
    assert ev.loss_figures(fine)[-1].met is True and ev.loss_figures(poor)[-1].met is False
    scores = {"previous_token": torch.tensor([[0.1, 0.7]]), "induction": torch.tensor([[0.3, 0.1]])}
    previous, induction = ev.head_figures(HeadScores(scores, torch.zeros(1, 2)))
    assert (previous.name, previous.met) == ("previous_token: layer 0, head 1", True)
    assert (induction.name, induction.met) == ("induction: layer 0, head 0", False)


def test_everything_runs(tokenizer, tiny, monkeypatch, capsys):
    monkeypatch.setattr(measure, "LONGEST_STORY", 5)
    monkeypatch.setattr(measure, "LONGEST_ANSWER", 3)
    model = tiny(use_sliding_window=True, max_window_layers=1, sliding_window=30)
    steps = []
    figures = ev.evaluate(
        model,
        tokenizer,
        measure.training_texts([Stage(TrainingSettings(1), documents=5, conversations=5)]),
        n_questions=4,
        n_stories=3,
        n_documents=4,
        n_training=20,
        track=lambda items, what: steps.append(what) or items,
    )
    assert sorted({figure.part[0] for figure in figures}) == list("123456")
    assert by_name(figures)["first turn"].met is False
    assert {"questions, turn 1", "questions, turn 2", "stories", "window off, turn 1"} <= set(steps)
    ev.show(figures)
    printed = capsys.readouterr().out
    assert "MISS" in printed and "≥ 90.0 %" in printed
    assert all(figure.name.strip() in printed for figure in figures)


def run(*arguments):
    app = typer.Typer()
    app.command()(ev.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize(("value", "code", "verdict"), [(0.95, 0, "PASS"), (0.85, 1, "MISS")])
def test_exit_code_and_json(tokenizer, tiny, tmp_path, monkeypatch, value, code, verdict):
    tokenizer.save_pretrained(tmp_path)
    tiny().to(torch.bfloat16).save_pretrained(tmp_path)

    def evaluate(model, tokenizer, known, **options):
        assert model.dtype == torch.float32
        return [ev.Figure("1 part", "name", value, 10, least=0.9), ev.Figure("1 part", "free", 2.5)]

    monkeypatch.setattr(ev, "evaluate", evaluate)
    result = run(tmp_path, "--json", tmp_path / "figures.json")
    assert result.exit_code == code and verdict in result.stdout
    first, second = json.loads((tmp_path / "figures.json").read_text())
    assert (first["value"], first["met"], second["met"]) == (value, code == 0, None)


def test_what_cannot_be_measured_exits_with_2(tokenizer, tmp_path):
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 2 and "nowhere" in result.stderr
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    result = run(tmp_path, "--json", tmp_path / "no" / "such.json")
    assert (
        result.exit_code == 2 and "cannot write" in result.stderr and "such.json" in result.stderr
    )
    result = run(tmp_path)
    assert result.exit_code == 2 and "config.json" in result.stderr


# --- heads ---------------------------------------------------------------------------------------


def test_mood_rows(tokenizer):
    told = list(stories("train", 5))
    rows = heads.mood_rows(tokenizer, told)
    assert [MOODS[i] for i in rows["labels"]] == [s.mood for s in told]
    for ids, mask, s in zip(rows["input_ids"], rows["attention_mask"], told, strict=True):
        assert tokenizer.decode(ids[mask.bool()]) == s.text
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded on the right


def test_tag_rows(tokenizer):
    told = list(stories("train", 5))
    rows = heads.tag_rows(tokenizer, told)
    for ids, mask, labels, s in zip(*(rows[n] for n in ("input_ids", "attention_mask", "labels")), told, strict=True):  # fmt: skip  # noqa: E501
        assert torch.equal(labels == -100, mask == 0)
        for name in heads.TAGS[1:]:  # the tokens of a tag spell the words that have it
            tokens = ids[labels == heads.TAGS.index(name)]
            words = [s.text[tag.start : tag.end] for tag in s.tags if tag.label == name]
            assert tokenizer.decode(tokens).replace(" ", "") == "".join(words)


def test_micro_f1_by_hand():
    labels = torch.tensor([[1, 0, 2, 0, -100], [3, 3, 0, 0, -100]])
    assert heads.micro_f1(labels.clamp(min=0), labels) == 1
    assert heads.micro_f1(torch.zeros_like(labels), labels) == 0
    found = torch.tensor([[1, 1, 3, 0, 1], [3, 0, 0, 0, 2]])
    # Right: 2. Tagged: 4, as padding does not count. Should be: 4.
    assert heads.micro_f1(found, labels) == pytest.approx(2 * 2 / (4 + 4))


@pytest.mark.parametrize(
    ("cls", "labels", "rows", "score"),
    [
        (Qwen2ForSequenceClassification, len(MOODS), heads.mood_rows, heads.accuracy),
        (Qwen2ForTokenClassification, len(heads.TAGS), heads.tag_rows, heads.tag_f1),
    ],
)
def test_a_head_learns(tokenizer, tiny, monkeypatch, cls, labels, rows, score):
    monkeypatch.setattr(heads, "BATCH", 4)
    few = rows(tokenizer, stories("train", 4))
    model = tiny(cls, num_labels=labels, num_hidden_layers=1)
    before = score(model, few)
    settings = TrainingSettings(steps=25, learning_rate=5e-3, warmup_steps=5)
    log = heads.fine_tune(model, few, settings)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert score(model, few) > max(before, 0.8)
    assert heads.predictions(model, few).shape == few["labels"].shape
