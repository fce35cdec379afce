"""The steps of a generation: the scores shown are those that a pass computes."""

from __future__ import annotations

import pytest

pytest.importorskip("ipywidgets")
pytest.importorskip("matplotlib")

from qwen2_edu import DynamicCache, Qwen2ForCausalLM, viz
from qwen2_edu.viz.steps import AGAIN, KNOWN, NEW, NOTHING, caption, strip, work

WORDS = "The cat sat on the old mat".split()


@pytest.mark.parametrize(
    "step, cached, computed, so_far, read",
    [
        (0, False, 6, 6, 0),  # a prompt of three: 1 + 2 + 3 scores
        (0, True, 6, 6, 0),
        (1, False, 10, 16, 0),
        (1, True, 4, 10, 3),
        (4, False, 28, 6 + 10 + 15 + 21 + 28, 0),
        (4, True, 7, 28, 6),
    ],
)
def test_numbers_of_a_step(step, cached, computed, so_far, read):
    shown = work(step, 3, 7, cached)
    assert (shown.computed, shown.so_far, shown.read) == (computed, so_far, read)


def test_scores_of_a_step():
    _, k, n, a = NOTHING, KNOWN, NEW, AGAIN
    assert work(1, 2, 4, True).scores.tolist() == [
        [k, _, _, _],
        [k, k, _, _],
        [n, n, n, _],
        [_] * 4,
    ]
    assert work(1, 2, 4, False).scores.tolist() == [
        [a, _, _, _],
        [a, a, _, _],
        [n, n, n, _],
        [_] * 4,
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_the_model_computes_as_many(small_config, randomise, cached):
    """Count the visible pairs of every attention of a real generation."""
    import torch

    from qwen2_edu import capture

    model = randomise(Qwen2ForCausalLM(small_config(num_hidden_layers=1)), seed=1)
    ids, counted = torch.arange(7)[None] % model.config.vocab_size, 0
    cache = DynamicCache(model.config) if cached else None
    for end in range(3, 8):
        with torch.no_grad(), capture(model) as record:
            held = cache.get_seq_length() if cached else 0
            model(ids[:, held:end], past_key_values=cache, use_cache=cached)
        counted += int((record.attentions[0][0, 0] > 0).sum())
    assert counted == work(4, 3, 7, cached).so_far


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((0, 1, 33), "length must be a whole number from 1 to 32, not 33"),
        ((0, 8, 7), "prompt must be a whole number from 1 to 7, not 8"),
        ((5, 3, 7), "step must be a whole number from 0 to 4, not 5"),
        ((0.0, 3, 7), "step"),
    ],
)
def test_what_cannot_be_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        work(*arguments, cached=True)


def test_widget_shows_every_step_and_says_it():
    shown = viz.steps(WORDS, 3)
    for step in range(5):
        shown.slider.value = step
        for cached in (False, True):
            assert caption(work(step, 3, 7, cached)) in shown.view.value
        assert repr(shown) == f"Steps(7 tokens, prompt=3, step={step})"
        titles = [axes.get_title() for axes in shown.static().axes]
        assert titles[1] == f"with a cache: {work(step, 3, 7, True).computed} scores"
    with pytest.raises(ValueError, match="prompt"):
        viz.steps(WORDS, 9)


def test_strip_has_a_panel_for_each_step_with_and_without():
    figure = strip(WORDS, 3, [0, 1, 4])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        f"step {s}: {work(s, 3, 7, c).computed} scores" for c in (0, 1) for s in (0, 1, 4)
    ]
