"""training.py: every step is the step it should be, and what goes wrong is said."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from qwen2_edu import (
    Qwen2ForCausalLM,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
)
from qwen2_edu.packing import Shuffled, pack
from qwen2_edu.training import (
    TrainingSettings,
    evaluate,
    learning_rate,
    make_optimiser,
    train,
    weighted_losses,
)

QUIET = {"progress": False}


@pytest.fixture
def model(small_config, randomise):
    return randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=True)))


def ids(rows, length, seed=0):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def lm_batches(number, rows=2, length=12):
    return [{"input_ids": (x := ids(rows, length, i)), "labels": x} for i in range(number)]


# --- settings, schedule, optimiser


def test_schedule_by_hand():
    settings = TrainingSettings(steps=10, learning_rate=0.8, floor=0.25, warmup_steps=4)
    rates = [learning_rate(step, settings) for step in range(1, 11)]
    falling = [0.2 + 0.6 * (1 + math.cos(math.pi * n / 6)) / 2 for n in range(1, 7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *falling])
    assert rates[6] == pytest.approx(0.5) and rates[9] == pytest.approx(0.2)
    assert learning_rate(10, replace(settings, warmup_steps=10)) == 0.8  # warm-up and no more
    assert learning_rate(1, TrainingSettings(steps=1, learning_rate=0.5, floor=0)) == 0


def test_only_matrices_decay(model):
    groups = make_optimiser(model, TrainingSettings(steps=1, weight_decay=0.3)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decays, others = ([names[id(p)] for p in group["params"]] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert len(set(decays) | set(others)) == len(decays) + len(others) == len(names)
    assert all("norm" in name or name.endswith("bias") for name in others)
    assert not any("norm" in name or name.endswith("bias") for name in decays)
    assert "model.embed_tokens.weight" in decays


def test_frozen_parameters_stay(model):
    model.model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        make_optimiser(model, TrainingSettings(steps=1))
    model.model.norm.weight.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, lm_batches(2), TrainingSettings(steps=2, learning_rate=0.1), **QUIET)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["model.norm.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_refused(model, dtype):
    with pytest.raises(ValueError, match=rf"embed_tokens.weight is {dtype}.*model.float\(\)"):
        train(model.to(dtype), lm_batches(1), TrainingSettings(steps=1), **QUIET)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 2.0),
        ("steps", True),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("learning_rate", "1e-3"),
        ("floor", 1.5),
        ("warmup_steps", 6),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("beta2", 1.0),
        ("max_grad_norm", 0.0),
        ("accumulation", 0),
        ("precision", "fp8"),
        ("seed", -1),
        ("log_every", 0),
        ("evaluate_every", 0),
        ("save_every", 1.5),
        ("steps", None),
        ("learning_rate", None),
        ("precision", None),
    ],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*not {value!r}"):
        TrainingSettings(**{"steps": 5, field: value})


# --- a step


@pytest.mark.parametrize("limit", [0.5, math.inf])
def test_steps_are_those_of_a_loop_by_hand(model, small_config, randomise, limit):
    settings = TrainingSettings(
        steps=4, learning_rate=0.02, warmup_steps=2, weight_decay=0.2, max_grad_norm=limit
    )
    twin = randomise(Qwen2ForCausalLM(small_config(tie_word_embeddings=True)))
    batches, rates = lm_batches(4), [0.01, 0.02, 0.011, 0.002]
    vectors = [p for p in twin.parameters() if p.ndim == 1]
    matrices = [p for p in twin.parameters() if p.ndim > 1]
    memory = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in matrices + vectors}
    expected = []
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        loss = twin(**batch).loss
        gradients = torch.autograd.grad(loss, list(memory))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        expected.append((loss.item(), norm.item(), rate))
        with torch.no_grad():
            for (p, (mean, square)), g in zip(memory.items(), gradients, strict=True):
                g = g * min(1.0, limit / norm)
                mean.mul_(0.9).add_(0.1 * g)
                square.mul_(0.95).add_(0.05 * g * g)
                p.mul_(1 - rate * (0.2 if p.ndim > 1 else 0.0))
                unbiased = (square / (1 - 0.95**step)).sqrt()
                p.sub_(rate * mean / (1 - 0.9**step) / (unbiased + 1e-8))
    model(**batches[3]).loss.backward()  # a gradient left over must not count
    log = train(model, batches, settings, **QUIET)
    assert all(norm > 0.5 for _, norm, _ in expected), "nothing to clip"
    found = [(line["loss"], line["grad_norm"], line["lr"]) for line in log]
    for line, wanted in zip(found, expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=0)


def ragged(lengths, seed=0, masked=0.0):
    """Rows of these lengths, padded on the right with -100, as a batch for the language model."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(3, 97, (len(lengths), 12), generator=generator)
    real = torch.arange(12) < torch.tensor(lengths)[:, None]
    return {"input_ids": x, "labels": x.masked_fill(~real, -100)}


def for_tokens():
    first = {"input_ids": ids(3, 6), "labels": torch.arange(18).view(3, 6) % 4}
    second = {"input_ids": ids(2, 6, 1), "labels": torch.full((2, 6), -100)}
    second["labels"][0, 0] = 3  # a row's first token does count here
    return [first, second]


def for_texts(labels):
    return [
        {"input_ids": ids(3, 6), "labels": labels[:3]},
        {"input_ids": ids(1, 6, 1), "labels": labels[3:]},
    ]


def for_spans():
    starts = torch.tensor([0, 2, 4, 1])
    batches = [{"input_ids": ids(3, 6)}, {"input_ids": ids(1, 6, 1)}]
    for batch, at in zip(batches, starts.split([3, 1]), strict=True):
        batch |= {"start_positions": at, "end_positions": at + 1}
    return batches


CASES = {
    "equal rows": (Qwen2ForCausalLM, {}, lambda: lm_batches(3)),
    "few and many labels": (
        Qwen2ForCausalLM,
        {},
        lambda: [ragged([12, 12, 11]), ragged([3, 2, 2], 1), ragged([1, 12, 1], 2)],
    ),
    "one batch counts nothing": (
        Qwen2ForCausalLM,
        {},
        lambda: [ragged([1, 1]), ragged([5, 2], 1), ragged([0, 1], 2)],
    ),
    "tokens": (Qwen2ForTokenClassification, {"num_labels": 4, "classifier_dropout": 0}, for_tokens),
    "texts": (
        Qwen2ForSequenceClassification,
        {"num_labels": 3},
        lambda: for_texts(torch.tensor([0, -100, 2, 1])),
    ),
    "regression": (
        Qwen2ForSequenceClassification,
        {"num_labels": 1},
        lambda: for_texts(torch.tensor([0.3, -100.0, 2.0, 1.0])),
    ),
    "several labels": (
        Qwen2ForSequenceClassification,
        {"num_labels": 3},
        lambda: for_texts(torch.eye(4, 3)),
    ),
    "spans": (Qwen2ForQuestionAnswering, {}, for_spans),
}


@pytest.mark.parametrize("case", CASES)
def test_accumulated_gradients_are_those_of_one_big_batch(small_config, randomise, case):
    kind, changes, make = CASES[case]
    model, batches = randomise(kind(small_config(**changes))).train(), make()
    big = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    loss = model(**big).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    total = sum(part.backward() or part.detach() for part in weighted_losses(model, batches))
    torch.testing.assert_close(total, loss.detach(), atol=1e-6, rtol=1e-6)
    scale = max(float(g.abs().max()) for g in expected)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad / scale, gradient / scale, atol=1e-6, rtol=0)
    assert evaluate(model, batches) == pytest.approx(loss.item(), rel=1e-6)


def test_accumulation_is_one_step_over_the_next_batches(small_config, randomise):
    def trained(batches, **settings):
        model = randomise(Qwen2ForCausalLM(small_config()))
        log = train(model, batches, TrainingSettings(2, learning_rate=0.01, **settings), **QUIET)
        return log, model.state_dict()

    parts = [ragged([12, 5], i) if i % 2 else ragged([2, 2], i) for i in range(6)]
    whole = [
        {name: torch.cat([batch[name] for batch in parts[i : i + 3]]) for name in parts[0]}
        for i in (0, 3)
    ]
    (log, parameters), (expected_log, expected) = trained(parts, accumulation=3), trained(whole)
    for line, wanted in zip(log, expected_log, strict=True):
        for name in ("loss", "lr", "grad_norm", "tokens"):
            assert line[name] == pytest.approx(wanted[name], rel=1e-5)
    for name, tensor in parameters.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)


def test_bf16_is_near_fp32_and_not_equal(small_config, randomise):
    def losses(precision):
        model = randomise(Qwen2ForCausalLM(small_config()))
        settings = TrainingSettings(steps=3, precision=precision)
        log = train(model, lm_batches(3), settings, held_out=lm_batches(1), **QUIET)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert log[-1]["held_out_loss"] == evaluate(model, lm_batches(1), precision)
        return [line["loss"] for line in log]

    exact, rounded = losses("fp32"), losses("bf16")
    assert losses("auto") == exact  # on the CPU
    assert rounded == pytest.approx(exact, rel=0.02)
    assert all(a != b for a, b in zip(exact, rounded, strict=True))


# --- learning


def test_loss_falls_on_a_toy_task(small_config):
    """Counting: who sees one number knows the next. Nats fall from ln 97 to almost none."""
    documents = [[(start + i) % 97 for i in range(15)] for start in range(97)]
    model = Qwen2ForCausalLM(small_config(num_hidden_layers=1))
    batches = Shuffled(pack(documents, 30), 16)
    settings = TrainingSettings(steps=80, learning_rate=0.02, warmup_steps=8)
    log = train(model, batches, settings, held_out=[batches[999]], **QUIET)
    assert log[0]["loss"] == pytest.approx(math.log(97), abs=0.2)
    assert log[-1]["held_out_loss"] < 0.1
    assert not model.training


@pytest.mark.parametrize("case", ["tokens", "texts", "several labels", "spans"])
def test_heads_learn(small_config, case):
    torch.manual_seed(0)
    kind, changes, make = CASES[case]
    model, batches = kind(small_config(**changes)), make()
    before = evaluate(model, batches)
    settings = TrainingSettings(steps=30, learning_rate=0.01, accumulation=2)
    train(model, batches * 30, settings, **QUIET)
    assert evaluate(model, batches) < before / 4


def test_evaluation_has_no_dropout_and_leaves_no_trace(small_config, randomise):
    model = randomise(Qwen2ForCausalLM(small_config(attention_dropout=0.5))).train()
    random = torch.get_rng_state()
    assert evaluate(model, lm_batches(2)) == evaluate(model, lm_batches(2))
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    evaluate(model, lm_batches(2))
    assert not model.training


def test_dropout_is_on_and_seeded(small_config, randomise):
    def loss(seed):
        model = randomise(Qwen2ForCausalLM(small_config(attention_dropout=0.5)))
        return train(model, lm_batches(1), TrainingSettings(1, seed=seed), **QUIET)[0]["loss"]

    assert loss(1) == loss(1) != loss(2)


# --- the log


def test_log(model, tmp_path, capsys):
    settings = TrainingSettings(7, warmup_steps=2, log_every=2, evaluate_every=3, accumulation=2)
    held_out = (batch for batch in lm_batches(2))  # may be read once only
    log = train(model, lm_batches(14), settings, held_out=held_out, folder=tmp_path, **QUIET)
    assert [line["step"] for line in log] == [2, 3, 4, 6, 7]
    assert [line["step"] for line in log if "held_out_loss" in line] == [3, 6, 7]
    assert [line["tokens"] for line in log] == [step * 2 * 2 * 12 for step in (2, 3, 4, 6, 7)]
    assert [line["lr"] for line in log] == [learning_rate(s, settings) for s in (2, 3, 4, 6, 7)]
    seconds = [line["seconds"] for line in log]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert log[-1]["held_out_loss"] == pytest.approx(evaluate(model, lm_batches(2)))
    text = (tmp_path / "training.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == log
    assert capsys.readouterr() == ("", "")


def test_bar(model, capsys):
    log = train(model, lm_batches(3), TrainingSettings(steps=3), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err and f"loss {log[-1]['loss']:.4f}" in err
    assert "tokens/s" in err and "time left" in err


# --- what goes wrong


class Poisoned(nn.Module):
    """Answers a loss that is no number, or whose gradient is none, from some call on."""

    def __init__(self, model, call, kind):
        super().__init__()
        self.model, self.call, self.kind, self.calls = model, call, kind, 0

    def forward(self, **batch):
        out = self.model(**batch)
        self.calls += 1
        if self.calls >= self.call:
            if self.kind == "gradient":
                out.loss.register_hook(lambda g: g * math.inf)
            else:
                out.loss = out.loss + float(self.kind)  # its gradient is sound
        return out


@pytest.mark.parametrize("keep", [True, False], ids=["folder", "no folder"])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_no_finite_number(model, randomise, tmp_path, kind, keep):
    folder = tmp_path if keep else None
    settings = TrainingSettings(steps=9, save_every=2, accumulation=2)
    poisoned = Poisoned(model, 8, kind)  # in step 4, after the state of step 2
    with pytest.raises(RuntimeError, match="step 4: the loss is .*batches 6 to 7.*0.001") as caught:
        train(poisoned, lm_batches(18), settings, folder=folder, **QUIET)
    where = "state after step 2 is in" if keep else "none was given"
    assert where in str(caught.value)
    after = {name: p.detach().clone() for name, p in poisoned.named_parameters()}
    if keep:
        assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 3
        before = (tmp_path / "state.safetensors").read_bytes()
        with pytest.raises(RuntimeError, match="step 3: .*state after step 2 is in"):
            train(Poisoned(model, 1, kind), lm_batches(18), settings, folder=tmp_path, **QUIET)
        assert (tmp_path / "state.safetensors").read_bytes() == before

    class UpToStep4(list):
        def __getitem__(self, i):
            if i == 6:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    fresh = Poisoned(randomise(model), 10**9, kind)
    with pytest.raises(KeyboardInterrupt):
        train(fresh, UpToStep4(lm_batches(18)), settings, **QUIET)
    for name, p in fresh.named_parameters():
        assert torch.equal(p, after[name]), "the model is not as before the bad step"


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (lm_batches(3), "5 steps of 1 batches need 5 batches, and there are fewer"),
        ([], "there are fewer"),
        ([{"labels": ids(1, 3)}] * 5, "each of the batches must have input_ids"),
        ([{"input_ids": ids(1, 3)}] * 5, "the model answers no loss"),
        ([ragged([1, 0])] * 5, "none of these 1 batches has a label"),
    ],
)
def test_batches_that_cannot_be_trained_on(model, batches, message):
    with pytest.raises(ValueError, match=message):
        train(model, batches, TrainingSettings(steps=5), **QUIET)
