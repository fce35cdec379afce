"""How people train: with transformers' Trainer, with a loop of their own as TRL has it, with frozen
weights and checkpointing. What is right is what transformers' own model does in the same loop.
"""

from __future__ import annotations

import copy
import logging

import peft
import pytest
import torch
import transformers

import qwen2_edu
from qwen2_edu import Qwen2Config

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def pair(randomise):
    def make(cls="Qwen2ForCausalLM", **fields):
        config = Qwen2Config(**SMALL, **fields)
        ours = randomise(getattr(qwen2_edu, cls)(config))
        told = config.to_dict() | {"num_labels": config.num_labels}
        theirs = getattr(transformers, cls)(transformers.Qwen2Config(**told))
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs

    return make


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def rows(count, length=9):
    draw = torch.Generator().manual_seed(3)
    found = []
    for n in range(count):
        ids = torch.randint(3, 97, (length,), generator=draw)
        labels = ids.clone()
        labels[: n % 5] = -100
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    ],
    ids=["plain", "checkpointing"],
)
def test_ten_steps_of_transformers_trainer(pair, tmp_path, options):
    """Loss and gradient of every step, two evaluations and the weights at the end: as its own."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logs, models = [], pair()
    for number, model in enumerate(models):
        told = transformers.TrainingArguments(
            str(tmp_path / str(number)), max_steps=10, per_device_train_batch_size=2,
            logging_steps=1, use_cpu=True, report_to=[], learning_rate=1e-3, eval_strategy="steps",
            eval_steps=5, save_steps=5, disable_tqdm=True, **options,
        )  # fmt: skip
        data = rows(60)
        trainer = transformers.Trainer(model, told, train_dataset=data, eval_dataset=data[:8])
        trainer.train()
        logs.append(trainer.state.log_history)
    for mine, other in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "eval_loss", "train_loss"):
            if name in other:
                assert mine[name] == pytest.approx(other[name], rel=1e-5), name
    assert sum("loss" in line for line in logs[0]) == 10
    for name, parameter in models[1].named_parameters():
        close(models[0].get_parameter(name), parameter)


@pytest.mark.filterwarnings("ignore")
def test_ten_steps_with_a_classification_head(pair, tmp_path):
    logs = []
    for number, model in enumerate(pair("Qwen2ForSequenceClassification", pad_token_id=0)):
        data = [row | {"labels": torch.tensor(n % 2)} for n, row in enumerate(rows(40))]
        told = transformers.TrainingArguments(
            str(tmp_path / str(number)), max_steps=10, per_device_train_batch_size=2, use_cpu=True,
            logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, told, train_dataset=data, eval_dataset=data[:4])
        trainer.train()
        logs.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        assert trainer.predict(data[:4]).predictions.shape == (4, 2)
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and len(logs[0]) == 10


def test_a_loop_as_trl_has_it(pair):
    """Log-probabilities of answers under a policy and a frozen reference, DPO's loss, ten steps."""
    losses = []
    for model, reference in zip(pair(), pair(), strict=True):
        reference.eval().requires_grad_(False)
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        optimiser, seen = torch.optim.AdamW(model.parameters(), 1e-3), []

        def answers(which, batch):
            out = which(**batch, use_cache=False, return_dict=True)
            chosen = out["logits"][:, :-1].log_softmax(-1)
            picked = chosen.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
            return (picked * batch["attention_mask"][:, 1:]).sum(-1)

        for step in range(10):
            draw = torch.Generator().manual_seed(step)
            ids = torch.randint(3, 97, (4, 8), generator=draw)  # two chosen, two rejected
            mask = torch.ones_like(ids)
            mask[1, 6:] = 0  # padded on the right, as TRL pads
            batch = {"input_ids": ids, "attention_mask": mask}
            with torch.no_grad():
                before = answers(reference, batch)
            gap = answers(model, batch) - before
            loss = -torch.nn.functional.logsigmoid(0.1 * (gap[:2] - gap[2:])).mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            seen.append(loss.item())
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] == pytest.approx(0.6931, abs=1e-3) and losses[0][-1] != losses[0][0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_options(pair, reentrant):
    ours, theirs = pair()
    ids = torch.randint(3, 97, (2, 9))
    theirs.train()(ids, labels=ids).loss.backward()
    ours.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    ours(ids, labels=ids).loss.backward()
    for name, parameter in theirs.named_parameters():
        close(ours.get_parameter(name).grad, parameter.grad)
    ours.gradient_checkpointing_disable()
    assert not ours.model.gradient_checkpointing
    with pytest.raises(ValueError, match="every_n_layers must be"):
        ours.activation_checkpointing_enable(every_n_layers=2)


def test_gradients_reach_the_embeddings_of_a_frozen_model(pair):
    """As adapters need it: without, a reentrant checkpoint has nothing to go back to."""
    ours, _ = pair()
    ours.requires_grad_(False)
    ours.train().gradient_checkpointing_enable({"use_reentrant": True})
    ids = torch.randint(3, 97, (1, 6))
    assert not ours(ids, labels=ids).loss.requires_grad
    ours.enable_input_require_grads()
    ours.enable_input_require_grads()  # a second call changes nothing
    assert ours(ids, labels=ids).loss.requires_grad
    ours.disable_input_require_grads()
    assert not ours(ids, labels=ids).loss.requires_grad


def test_accumulated_batches_weigh_as_one(pair):
    ours, _ = pair()
    batch = rows(4)
    whole = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
    ours(**whole).loss.backward()
    want = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    count = whole["labels"][:, 1:].ne(-100).sum()
    for row in batch:
        parts = {name: tensor[None] for name, tensor in row.items()}
        ours(**parts, num_items_in_batch=count).loss.backward()
    for name, parameter in ours.named_parameters():
        close(parameter.grad, want[name])


@pytest.mark.filterwarnings("ignore")
def test_prompt_tuning_of_peft(pair):
    """The forward pass is that around transformers' model; to generate without the prompt would be
    wrong in silence.
    """
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ids, found = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0)), []
    for model in pair(pad_token_id=0):
        torch.manual_seed(0)
        tuned = peft.get_peft_model(model, config).eval()
        found.append(tuned(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        if isinstance(model, qwen2_edu.Qwen2ForCausalLM):
            with pytest.raises(ValueError, match="was replaced, as prompt tuning does"):
                tuned.generate(input_ids=ids, max_new_tokens=2)
            assert model.generate(ids, max_new_tokens=2).shape == (2, 11)
    close(*found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "head, task",
    [
        ("Qwen2ForCausalLM", "CAUSAL_LM"),
        ("Qwen2ForSequenceClassification", "SEQ_CLS"),
        ("Qwen2ForTokenClassification", "TOKEN_CLS"),
    ],
)
def test_low_rank_adapters_of_peft(pair, tmp_path, head, task):
    """Trained for three steps, saved, loaded, merged: as around transformers' model."""
    config = peft.LoraConfig(task_type=task, r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1]) if task == "SEQ_CLS" else ids % (97 if "LM" in task else 2)
    found = []
    for model in pair(head, pad_token_id=0, num_labels=2):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(copy.deepcopy(model), config).train()
        optimizer = torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.1)
        losses = []
        for _ in range(3):
            loss = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        adapted.eval()
        if task == "CAUSAL_LM":
            assert adapted.generate(input_ids=ids, max_new_tokens=3).shape == (2, 12)
        folder = tmp_path / type(model).__module__
        adapted.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
        logits = adapted(input_ids=ids).logits
        close(again(input_ids=ids).logits, logits, 0)
        close(again.merge_and_unload()(input_ids=ids).logits, logits, 1e-4)
        found.append((torch.stack(losses), logits))
    close(found[0][0], found[1][0], 1e-4)
    close(found[0][1], found[1][1], 1e-4)
    assert found[0][0][0] != found[0][0][2]
