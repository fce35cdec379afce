"""How the next token is chosen: the model's probabilities, and what each setting makes of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from types import SimpleNamespace
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor

from .. import sampling as functions
from ..config import Qwen2Config
from ..decoding.processors import known
from ..decoding.settings import effective_settings
from ..tokenizer import TokenizerBase
from .given import check_model
from .labels import token_labels
from .palette import BLUE, CSS, GREEN, ORANGE, PURPLE, SKY, tint
from .tokens import Page, check_pair, ids_of

# The settings in the order of `decoding.processors`, each where it does nothing.
NEUTRAL = {"repetition_penalty": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CUTS = {"top_k": ORANGE, "top_p": PURPLE, "min_p": GREEN}  # those that remove tokens; their stripes
_RANGES = {  # lowest, highest, step of a slider
    "repetition_penalty": (0.5, 2.0, 0.05),
    "temperature": (0.05, 3.0, 0.05),
    "top_k": (0, 50, 1),
    "top_p": (0.01, 1.0, 0.01),
    "min_p": (0.0, 1.0, 0.01),
}
# JupyterLab takes the arrow keys for its own, but where the focused element says no.
_REGION = 'tabindex="0" role="region" aria-label="next tokens" data-lm-suppress-shortcuts="true"'
EXPLAINED = (
    "before cuts: after repetition_penalty and temperature, which change the odds; after cuts: "
    "what a token is drawn from, once top_k, top_p and min_p have taken tokens away"
)
_SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # the probability that fills a row


@dataclass(frozen=True)
class Step:
    """What one setting did.

    name: the option of `generate`. value: what it was set to.
    logits: (V,), after it.
    removed: bool (V,), the tokens that it took away.
    mass: the probability they had until then.
    """

    name: str
    value: float
    logits: Tensor
    removed: Tensor
    mass: float


@dataclass(frozen=True)
class Bar:
    """A token's way through the settings.

    model: its probability as the model says.
    shaped: after repetition penalty and temperature, before the cuts.
    final: as it is drawn; 0 if it was cut.
    cut: which setting took it away, "top_k", "top_p" or "min_p"; None = none.
    """

    id: int
    model: float
    shaped: float
    final: float
    cut: str | None


def steps(logits: Tensor, seen: Tensor | None = None, **options: Any) -> list[Step]:
    """What does each setting do to the logits, one after the other as `generate` has it?

    Args:
        logits: (V,), of one next token.
        seen: bool (V,), the tokens that the repetition penalty is for; None = none.
        **options: those of `generate` in `NEUTRAL`. One at its neutral value is no step.

    Raises:
        TypeError, ValueError: an option or value that cannot be, as in `generate`.
        ValueError: logits or `seen` of another shape.
    """
    if logits.ndim != 1 or (seen is not None and seen.shape != logits.shape):
        shapes = [tuple(t.shape) for t in (logits, seen) if t is not None]
        raise ValueError(f"logits and seen must be of one token, (V,), not {shapes}")
    for name in options.keys() - NEUTRAL.keys():
        raise TypeError(f"there is no option {name!r}: the options are {', '.join(NEUTRAL)}")
    any_model = SimpleNamespace(generation_config=None, config=Qwen2Config())
    effective_settings(any_model, do_sample=True, **{**NEUTRAL, **options})  # refuses bad values
    done, now = [], logits.float()[None]  # (1, V)
    for name, neutral in NEUTRAL.items():
        value = options.get(name, neutral)
        if value == neutral or (name == "repetition_penalty" and seen is None):
            continue
        before = now
        given = (seen[None], value) if name == "repetition_penalty" else (value,)
        now = getattr(functions, name)(before, *given)
        removed = (before.isfinite() & ~now.isfinite())[0]
        mass = float(before[0].softmax(-1)[removed].sum())
        done.append(Step(name, value, now[0], removed, mass))
    return done


def bars(logits: Tensor, seen: Tensor | None = None, show: int = 20, **options: Any) -> list[Bar]:
    """The likeliest tokens, best first, each with its way through the settings.

    Args:
        logits, seen, options: as in `steps`.
        show: how many tokens.
    """
    if show < 1:
        raise ValueError(f"show must be at least 1, not {show}")
    return _bars(logits, steps(logits, seen, **options), show)


def _bars(logits: Tensor, done: list[Step], show: int) -> list[Bar]:
    shapers = [step for step in done if step.name not in CUTS]
    cuts = done[len(shapers) :]
    shaped = shapers[-1].logits if shapers else logits.float()
    final = cuts[-1].logits if cuts else shaped
    stages = [stage.softmax(-1) for stage in (logits.float(), shaped, final)]
    rows = []
    for i in shaped.argsort(descending=True, stable=True)[:show].tolist():
        cut = next((step.name for step in cuts if step.removed[i]), None)
        rows.append(Bar(i, *(float(stage[i]) for stage in stages), cut))
    return rows


def summary(done: list[Step], size: int) -> list[str]:
    """What the settings did, a sentence each, and what is left of `size` tokens."""
    lines, left = [], size
    for step in done:
        left -= int(step.removed.sum())
        what = f"removes {int(step.removed.sum()):,}, which had {step.mass:.4f} of the probability"
        what = what if step.name in CUTS else "changes the odds"
        lines.append(f"{step.name} {step.value:g} {what}")
    return [*lines, f"{left:,} of {size:,} tokens can be drawn"]


def page_of(rows: list[Bar], names: list[str], lines: list[str], drawn: dict[int, int]) -> Page:
    """The bars as a table: pale before the cuts, dark after them, striped if removed.

    Args:
        names: what to call the tokens of the rows.
        lines: to stand below.
        drawn: how often each id has been drawn.
    """
    scale = next(s for s in _SCALES if s >= min(1, max(max(r.shaped, r.final) for r in rows)))
    pale = tint(SKY, 0.4)
    heads = ["token", f"probability, 0 to {scale:g}", "model", "before cuts", "after cuts"]
    html, text = [], [f"{heads[0]:<14}{'model':>8}{'before':>8}{'after':>8}"]
    for row, name in zip(rows, names, strict=True):
        fill = f"background-color:{pale}"
        if row.cut:
            stripe = tint(CUTS[row.cut], 0.8)
            fill = f"background:repeating-linear-gradient(45deg,{stripe} 0 2px,transparent 2px 6px)"
        track = (
            f'<div style="width:{row.shaped / scale:.2%};height:8px;{fill}"></div>'
            f'<div style="width:{row.final / scale:.2%};height:8px;background-color:{BLUE}"></div>'
        )
        numbers = [f"{p:.4f}" if p else "0" for p in (row.model, row.shaped, row.final)]
        track = f'<div class="q2-track" style="width:180px">{track}</div>'
        cells = [track, *numbers, drawn.get(row.id, ""), row.cut or ""]
        head = f'<tr><th scope="row"><bdi title="id {row.id}">{escape(name)}</bdi></th>'
        html.append(head + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        why = f"  removed by {row.cut}" if row.cut else ""
        text.append(f"{name:<14}" + "".join(f"{n:>8}" for n in numbers) + why)
    for i, colour in ((3, pale), (4, BLUE)):
        key = f"background:{colour};padding:0 5px;margin-right:4px"
        heads[i] = f'<span style="{key}"></span>{heads[i]}'
    head = "".join(f'<th scope="col">{name}</th>' for name in (*heads, "draws", "removed by"))
    table = f'<table class="q2-bars"><thead><tr>{head}</tr></thead>{"".join(html)}</table>'
    table = f'<div class="q2-scroll" {_REGION}>{table}</div>'
    below = "<br>".join(map(escape, lines))
    return Page(
        f'{CSS}{table}<div class="q2-say" role="status">{below}</div>', "\n".join(text + lines)
    )


class Sampling(widgets.VBox):
    """Sliders over the bars of the next token; `sampling` says how to make one.

    Attributes:
        sliders: by the name of the option. Set their `value` as the mouse would.
        drawn: the ids that were drawn since a slider was last moved.
        ids, appended: what the model has read, and how many of the last of these were drawn.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompt: Any, show: int, seed: int, options: dict[str, Any]
    ):
        check_model(model)
        check_pair(model, tokenizer)
        self.model, self.tokenizer, self.show, self.seed = model, tokenizer, show, seed
        self._read(ids_of(tokenizer, prompt))
        bars(self.logits, self.seen, show, **options)  # what cannot be is refused before all else
        self.sliders = {}
        for name, (low, high, step) in _RANGES.items():
            value, style = options.get(name, NEUTRAL[name]), {"description_width": "180px"}
            said = f"{name} ({NEUTRAL[name]:g} = off)"
            edges = {"min": min(low, value), "max": max(high, value), "step": step}
            kind = widgets.IntSlider if name == "top_k" else widgets.FloatSlider
            look = {"style": style, "layout": {"width": "440px", "max_width": "100%"}}
            self.sliders[name] = kind(value, description=said, **look, **edges)
            self.sliders[name].observe(self._show, "value")
        self.box = widgets.Textarea(description="prompt", rows=2, layout={"width": "auto"})
        self.button = widgets.Button(description="draw", tooltip="draw a token with these settings")
        self.append_button = widgets.Button(
            description="append",
            tooltip="put the token drawn behind the prompt; none yet: draw one",
        )
        self.back_button = widgets.Button(
            description="take back", tooltip="take the last appended token away", disabled=True
        )
        buttons = widgets.HBox([self.button, self.append_button, self.back_button])
        self.view = widgets.HTML()
        left = widgets.VBox([*self.sliders.values(), buttons])
        row = widgets.HBox([left, self.view], layout={"flex_flow": "row wrap"})
        super().__init__([self.box, row])
        if isinstance(prompt, str):
            self.box.value = prompt
        else:
            self.children = [row]
        self.box.observe(self._type, "value")
        self.button.on_click(self.draw)
        self.append_button.on_click(self.append)
        self.back_button.on_click(self.take_back)
        self._show()

    @property
    def options(self) -> dict[str, Any]:
        """What the sliders say."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def static(self) -> Page:
        """What is shown, without the sliders."""
        done = steps(self.logits, self.seen, **self.options)
        lines = [*summary(done, len(self.logits)), EXPLAINED]
        if self.appended:
            new = token_labels(self.tokenizer, self.ids[-self.appended :])
            lines.append(f"appended: {' '.join(token['text'] for token in new)}")
        for token in token_labels(self.tokenizer, self.drawn[-1:]):
            lines.append(f"draw {len(self.drawn)}: {token['text']}, id {token['id']}")
        rows = _bars(self.logits, done, self.show)
        names = [token["text"] for token in token_labels(self.tokenizer, [row.id for row in rows])]
        return page_of(rows, names, lines, Counter(self.drawn))

    def draw(self, _: Any = None) -> int:
        """Draw one token as `generate` would, show it, and answer its id."""
        done = steps(self.logits, self.seen, **self.options)
        logits = done[-1].logits if done else self.logits
        rows = self.model.config.vocab_size  # those of padding are no tokens, but a die's sides
        logits = known(logits[None], rows, rows)
        self.drawn.append(int(functions.draw(logits, self.generator)))
        self.view.value = self.static().html
        return self.drawn[-1]

    def append(self, _: Any = None) -> int:
        """Put the token drawn last, or now, behind the prompt, and answer its id.

        The draws go on from where they were, so a prompt extended token by token becomes what
        `generate` makes of it with a generator of this seed.
        """
        token = self.drawn[-1] if self.drawn else self.draw()
        self._extend([*self.ids, token], self.appended + 1)
        return token

    def take_back(self, _: Any = None) -> None:
        """Take away the token that was appended last."""
        if self.appended:
            self._extend(self.ids[:-1], self.appended - 1)

    def _extend(self, ids: list[int], appended: int) -> None:
        self._read(ids, appended)
        self.box.unobserve(self._type, "value")  # these ids, whatever a tokenizer makes of the text
        self.box.value = self.tokenizer.decode(ids)
        self.box.observe(self._type, "value")
        self.drawn = []
        self.view.value = self.static().html

    def _read(self, ids: list[int], appended: int = 0) -> None:
        """Let the model read the prompt once; the sliders work on its answer."""
        self.ids, self.appended = ids, appended
        ids = torch.tensor([ids], device=self.model.device)  # (1, T)
        with torch.no_grad():
            logits = self.model(ids, logits_to_keep=1).logits[0, -1].float().cpu()
        self.logits = logits[: len(self.tokenizer)]  # ids beyond the last token are never drawn
        self.seen = functions.seen_tokens(ids.cpu(), len(logits))[0, : len(self.logits)]
        if hasattr(self, "back_button"):
            self.back_button.disabled = not appended

    def _type(self, _: Any) -> None:
        try:
            self._read(ids_of(self.tokenizer, self.box.value))
        except ValueError as error:  # an empty prompt, a lone surrogate
            self.button.disabled = self.append_button.disabled = self.back_button.disabled = True
            self.view.value = f'{CSS}<div class="q2-say" role="alert">{escape(str(error))}</div>'
        else:
            self.button.disabled = self.append_button.disabled = False
            self._show()

    def _show(self, _: Any = None) -> None:
        self.drawn, self.generator = [], torch.Generator().manual_seed(self.seed)
        self.view.value = self.static().html

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value:g}" for name, value in self.options.items())
        return f"Sampling({said})"


def sampling(
    model: Any,
    tokenizer: TokenizerBase,
    prompt: Any,
    *,
    show: int = 15,
    seed: int = 0,
    **options: Any,
) -> Sampling:
    """The next token's probabilities, under sliders for everything that `generate` may do to them.

    Args:
        prompt: a text, which can be edited; or messages or ids, which cannot.
        show: how many tokens have a bar.
        seed: of the draws; moving a slider starts the draws anew.
        **options: where the sliders stand, by the names in `NEUTRAL`; there they change nothing.

    Raises:
        TypeError, ValueError: no model, no tokenizer, an empty prompt, options that cannot be.
    """
    return Sampling(model, tokenizer, prompt, show, seed, options)
