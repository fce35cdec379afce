"""The attention explorer: what each head looks at, in a notebook or in a page of its own."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import matplotlib
import torch
import traitlets
from matplotlib.figure import Figure

from ..causes import Trace
from . import record
from .effects import changed, trace_of, trace_of_other
from .facts import page_data, rounding_sentence, rows
from .given import check_model, choose_layers, encode
from .lens import lens_places, lens_rows, lens_sentence
from .opening import why_no_shares
from .shares import SHARE, shares_of_all, shares_to_choose
from .static import display_apart, explorer_figure
from .tokens import check_pair

HERE = Path(__file__).parent
PARTS = """tools source weights minus shares heat heads map controls text lens causes page
explorer""".split()
MODULE = "\n".join((HERE / "js" / f"{part}.js").read_text("utf-8") for part in PARTS)
LARGEST_PAGE = 20_000_000  # bytes: beyond it a browser takes seconds and mail refuses it
FINE_PAGE = 12_000_000  # beyond it the weights of a page are rounded
ROUNDINGS = (1, 3, 5)  # to multiples of so much, out of 255


def attention_explorer(
    model: Any,
    tokenizer: Any,
    text_or_messages: Any,
    *,
    layers: Sequence[int] | None = None,
    max_tokens: int = 512,
    max_new_tokens: int = 0,
    **generation: Any,
) -> AttentionExplorer:
    """See what each head of a model looks at while it reads a text, and while it continues it.

    It opens on the head that fetches most of the logit of the answer's first token: see `opening`.

    Whatever the model's backend, its layers run the eager formula while they are recorded. The
    model may be on any device; its mode is left as it is.

    Args:
        model: of this package; the logit lens and generation need a Qwen2ForCausalLM.
        tokenizer: the model's.
        text_or_messages: a text; a list of messages; or what the tokenizer made of one text,
            padding included.
        layers: whose maps to show; None = all.
        max_tokens: refuse longer texts, the generated tokens included: the maps grow as their
            square.
        max_new_tokens: let the model continue the text by so many tokens at most; each step can
            then be looked at.
        **generation: further options of `generate`.

    Returns:
        A widget. `.to_html(path)` writes it as a page, `.static()` draws it as a figure,
        `.read(text)` shows another text, `.recording` holds what was measured.

    Raises:
        TypeError: a model or text of another kind. ValueError: an empty or too long text, a model
            under torch.compile, layers that are not there, tokens that are not the model's.
    """
    check_model(model)
    check_pair(model, tokenizer)
    chosen = choose_layers(model.config, layers)
    if generation and not max_new_tokens:
        raise TypeError(f"{', '.join(generation)}: for generation, so pass max_new_tokens too")
    options = {"max_new_tokens": max_new_tokens, **generation} if max_new_tokens else {}
    if len(tokenizer) < 0.9 * model.config.vocab_size:
        warnings.warn(
            f"the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}: "
            "if it is not the model's own, the words shown are not what the model reads",
            stacklevel=2,
        )

    def measure(given: Any) -> record.Recording:
        return _measure(model, tokenizer, given, chosen, max_tokens, options)

    return AttentionExplorer(model, tokenizer, measure, text_or_messages)


def _measure(
    model: Any, tokenizer: Any, given: Any, layers: list[int], max_tokens: int, options: dict
) -> record.Recording:
    """Let the model read a text, and continue it if `options` of `generate` are given."""
    ids, real = encode(tokenizer, given)
    new = options.get("max_new_tokens", 0)
    if ids.shape[1] + new > max_tokens:
        length = f"{ids.shape[1]} tokens{f' and {new} new ones' if new else ''}"
        raise ValueError(
            f"the text has {length}, and max_tokens={max_tokens}: shorten it, or pass a larger "
            f"max_tokens; each layer then takes {model.config.num_attention_heads} bytes times "
            "the square of the length"
        )
    outside = ids[(ids < 0) | (ids >= model.config.vocab_size)].tolist()
    if outside:
        raise ValueError(
            f"the text has the token id {outside[0]}, and the model's ids end at "
            f"{model.config.vocab_size - 1}: is this tokenizer the model's?"
        )
    ids, real = ids.to(model.device), real.to(model.device)
    if options:
        return record.record_generation(model, tokenizer, ids, real, layers, **options)
    return record.record_text(model, ids, real, layers)


class AttentionExplorer(anywidget.AnyWidget):
    """The widget that `attention_explorer` makes.

    `layer`, `head`, `query` and `key` are what is chosen: read them, or set them to choose. While
    `key` is None, it is the one that the query looks at most.
    """

    _esm = MODULE
    _css = HERE / "explorer.css"
    data = traitlets.Dict().tag(sync=True)
    thumbnails = traitlets.Bytes().tag(sync=True)
    norms = traitlets.Bytes().tag(sync=True)
    colours = traitlets.Bytes().tag(sync=True)
    first = traitlets.Bytes().tag(sync=True)  # the layer it opens on: it need not be asked for
    layer = traitlets.Int().tag(sync=True)
    head = traitlets.Int().tag(sync=True)
    query = traitlets.Int().tag(sync=True)
    key = traitlets.Int(None, allow_none=True).tag(sync=True)
    beside = traitlets.Dict().tag(sync=True)  # about the explorer beside it, see `side_by_side`
    other: AttentionExplorer | None = None  # that explorer

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        measure: Callable[[Any], record.Recording],
        text_or_messages: Any,
    ):
        self.model, self.tokenizer, self._measure = model, tokenizer, measure
        super().__init__(colours=colour_tables(), **self._look_at(measure(text_or_messages)))
        self.on_msg(self._answer)

    def read(self, text_or_messages: Any) -> None:
        """Show another text, measured as the first one was. If it is refused, the old one stays.

        Raises:
            TypeError, ValueError: as in `attention_explorer`.
        """
        recording = self._measure(text_or_messages)
        with self.hold_sync():  # one message
            for name, value in self._look_at(recording).items():
                setattr(self, name, value)

    def _look_at(self, recording: record.Recording) -> dict[str, Any]:
        """From now on this is shown: what the traits become."""
        self.recording, self._trace = recording, None  # traced when a change is first looked at
        self._other: tuple[str | None, Trace | None] = (None, None)  # another text, and its trace
        layer, head, query, _ = recording.opens
        return {
            "thumbnails": b"".join(_bytes(recording.thumbnails[view]) for view in record.VIEWS),
            "norms": _bytes(recording.norms),
            "first": self.payload(layer),
            "layer": layer,
            "head": head,
            "query": query,
            "key": None,
            "data": page_data(self.model, self.tokenizer, recording),
        }

    @traitlets.validate("layer", "head", "query", "key")
    def _check(self, proposal: Any) -> int | None:
        name, value = proposal["trait"].name, proposal["value"]
        if value is not None and value not in (known := self.choices(name)):
            raise ValueError(f"{name}={value}: choose one of {known}")
        return value

    def choices(self, name: str) -> Sequence[int]:
        """What "layer", "head", "query" or "key" can be."""
        r, places = self.recording, range(len(self.recording.ids))
        known = {"layer": r.layers, "head": range(r.maps.shape[1]), "query": places}
        return (known | {"key": places})[name]

    def _answer(self, _: Any, message: dict[str, Any], buffers: list) -> None:
        """The browser looks at something for the first time: send it."""
        try:
            found = self._find(message)
        except (ValueError, RuntimeError) as error:  # too large, too long; no memory left
            self.send({**message, "error": str(error)})
        else:
            if isinstance(found, bytes):
                self.send(message, [found])
            elif found is not None:
                self.send({**message, "rows": found})

    def _find(self, message: dict[str, Any]) -> bytes | list | dict | None:
        kind, *of = message["name"].split()
        if kind == "layer":
            return self.payload(int(of[0]))
        if kind == "norms":
            return self.norms
        if kind == "beside":  # and of which reading: the browser asks each one anew
            return self.other._find({"name": " ".join(of[1:])})
        if kind == "cell":
            return rows(record.looking(self.recording, int(of[0]), int(of[1]), of[2]))
        if kind == "lens":
            return lens_rows(self.model, self.tokenizer, self.recording.hidden[:, int(of[0])])
        if kind == "grid":
            place, start, end = map(int, of)
            stream = self.recording.hidden[place, start:end]
            return [best for (best,) in lens_rows(self.model, self.tokenizer, stream, 1)]
        if kind == "shares":
            here = self.traced(), self.tokenizer, self.recording
            return shares_to_choose(*here, *map(int, of))
        if kind == "count":  # the tokens of another text, and how many it needs
            ids, _ = encode(self.tokenizer, json.loads(message["name"].removeprefix("count ")))
            return [ids.shape[1], int(self.recording.real[: self.recording.prompt].sum())]
        if kind == "page":
            return self._page(view=message["view"]).encode()
        if kind == "effect":
            return self.changed(**json.loads(message["name"].removeprefix("effect ")))
        return self.read(message["text"])  # the new data is the answer

    def payload(self, layer: int) -> bytes:
        """One layer as it travels: the maps of its heads, then its mask, T*T bytes each."""
        return _bytes(torch.cat((self._maps(layer), self.mask(layer)[None])))

    def _maps(self, layer: int) -> torch.Tensor:
        return self.recording.maps[self.recording.layers.index(layer)]

    def page_layer(self, layer: int, step: int = 1) -> bytes:
        """The same as a page has it, without the future: of row q the q+1 weights that can be > 0.

        Args:
            step: of ROUNDINGS: the bytes of the maps become multiples of it.
        """
        maps = self._maps(layer)
        maps = maps[:, torch.ones(maps.shape[1:], dtype=torch.bool).tril()]  # (H, T*(T+1)/2)
        if step > 1:  # 255 is a multiple of each step, so that a weight of 1 stays 1
            maps = ((maps.to(torch.int16) + step // 2) // step * step).to(torch.uint8)
        return _bytes(maps) + _bytes(self.mask(layer))

    def _packed_layer(self, layer: int, step: int) -> str:
        return _packed(self.page_layer(layer, step), zlib.Z_FILTERED)

    def _packed_layers(self, taken: int) -> tuple[dict[str, str], int]:
        """All layers for a page, as finely as it has room beside `taken` bytes, and that step."""
        for step in ROUNDINGS:
            limit = LARGEST_PAGE if step == ROUNDINGS[-1] else min(FINE_PAGE, LARGEST_PAGE)
            packed, size, pool = {}, taken, ThreadPoolExecutor(torch.get_num_threads())
            blobs = pool.map(partial(self._packed_layer, step=step), self.recording.layers)
            for i, blob in zip(self.recording.layers, blobs, strict=True):
                packed[f"layer {i}"] = blob
                size += len(blob)
                if size > limit:
                    break
            pool.shutdown(cancel_futures=True)
            if size <= limit:
                return packed, step
        raise ValueError(
            f"the page would have at least {size / 1e6:.1f} MB, more than "
            f"{LARGEST_PAGE / 1e6:.0f}: pass attention_explorer fewer layers=[…], or a shorter text"
        )

    def mask(self, layer: int) -> torch.Tensor:
        """Why which query of a layer cannot look at which key; see `record.effective_mask`."""
        config = self.model.config
        window = config.window_by_type[config.layer_types[layer]]
        return record.effective_mask(self.recording.real, window)

    def traced(self) -> Trace:
        """What flowed in what is shown: one pass more, when a cause is first asked for."""
        if self._trace is None:
            self._trace = trace_of(self.model, self.recording)
        return self._trace

    def changed(
        self, query: int, *, patches: Sequence = (), other: str | None = None, **changes: Any
    ) -> dict[str, Any]:
        """What `effects.changed` says after a query; `other` is the text that patches come from."""
        if patches and self._other[0] != other:
            parts = self.model, self.tokenizer, self.recording
            self._other = other, trace_of_other(*parts, other or "")
        given = {"patches": patches, "other": self._other[1], **changes}
        return changed(self.traced(), self.tokenizer, self.recording, query, **given)

    def to_html(
        self, path: str | os.PathLike[str] | None = None, *, lens: int | None = None
    ) -> str | Path:
        """The explorer as one self-contained page: no kernel, no network.

        Where it would have more than 12 MB the weights are rounded, and the page says how coarsely.

        Args:
            path: where to write it, and its size is printed; None = return the text.
            lens: read the stream off after every so many layers, counted from the last; 0 = no
                lens; None = as often as 3,000 products with the vocabulary allow.

        Raises:
            ValueError: no such lens; the page would have more than 20 MB.
        """
        text = self._page(lens)
        if path is None:
            return text
        path = Path(path)
        path.write_text(text, encoding="utf-8")
        print(f"{path}: {len(text.encode()) / 1e6:.1f} MB, opens without a network")
        return path

    def _page(self, lens: int | None = None, view: str = "") -> str:
        """The page; `view` is what of it is seen at first, as its address would tell it."""
        r, read = self.recording, self.data["lens"]
        places = lens_places(len(read), len(r.ids), lens)
        blobs = {"thumbnails": self.thumbnails, "norms": self.norms, "colours": self.colours}
        blobs = {name: _packed(blob) for name, blob in blobs.items()}
        each = 200 * len(places)  # bytes of the lens or fewer, for a token
        if shared := not why_no_shares(self.model):
            each += SHARE * self.model.config.num_hidden_layers * (self.data["heads"] + 1)
        # Sizes come first: the lens is what takes time.
        layers, step = self._packed_layers(sum(map(len, blobs.values())) + each * len(r.ids))
        blobs |= layers
        if shared:
            found = shares_of_all(self.traced(), self.tokenizer, r)
            blobs["shares"] = _packed(json.dumps(found, separators=(",", ":")).encode())
        if places:
            stream = r.hidden[places].transpose(0, 1).flatten(0, 1)  # (T * places, E)
            rows = lens_rows(self.model, self.tokenizer, stream)
            by_token = [rows[i : i + len(places)] for i in range(0, len(rows), len(places))]
            blobs["lens"] = _packed(json.dumps(by_token).encode())
        data = self.data | {"lens": [read[i] for i in places]}
        data["lensNote"] = data["lensNote"] or lens_sentence(len(read), places)
        data["rounded"] = rounding_sentence(step)
        page = {"data": data, "layer": self.layer, "head": self.head, "query": self.query}
        page |= {"blobs": blobs, "view": view}
        return PAGE.format(
            title=html.escape(self.data["title"]),
            css=(HERE / "explorer.css").read_text("utf-8"),
            page=json.dumps(page).replace("<", "\\u003c"),  # or a token </script> would end it
            js=MODULE,
        )

    def static(self) -> Figure:
        """The same as a figure, for paper and for pages that run no JavaScript."""
        return explorer_figure(
            self.data, self.recording, self.layer, self.head, self.mask(self.layer)
        )

    def _ipython_display_(self) -> None:
        if self.comm is not None:  # it is not closed
            display_apart(self._repr_mimebundle_()[0])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and a picture."""
        if (bundle := super()._repr_mimebundle_(**kwargs)) is None:
            return None  # it is closed
        png = io.BytesIO()
        self.static().savefig(png, format="png", dpi=72, facecolor="white")
        bundle[0]["image/png"] = base64.b64encode(png.getvalue()).decode()
        return bundle

    def __repr__(self) -> str:
        return f"AttentionExplorer: {self.data['title']}"


def colour_tables() -> bytes:
    """viridis, then cividis: 256 colours of three bytes each."""
    tables = [matplotlib.colormaps[name](range(256), bytes=True) for name in ("viridis", "cividis")]
    return b"".join(table[:, :3].tobytes() for table in tables)


def _packed(blob: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> str:
    """Deflated and in base64; Z_FILTERED is 4% shorter for maps, which hardly repeat themselves."""
    packer = zlib.compressobj(6, strategy=strategy)
    return base64.b64encode(packer.compress(blob) + packer.flush()).decode()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Attention explorer: {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: light-dark(#fff, #15181c); }}
main {{ max-width: 1880px; margin: 0 auto; }}
{css}
</style>
</head>
<body>
<main id="explorer"></main>
<script type="application/json" id="page">{page}</script>
<script type="module">
{js}
const [place, page] = ["explorer", "page"].map((id) => document.getElementById(id));
explore(place, fromPage(JSON.parse(page.textContent)));
</script>
</body>
</html>
"""
