"""How a text is continued: the fields of a released `generation_config.json`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checks import write_whole

# What holds when neither the call nor the model says otherwise; the values of transformers 5.
DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "max_new_tokens": 20,
}


@dataclass
class GenerationConfig:
    """How to continue a text. None = not said here: the model's file, then `DEFAULTS`, decide.

    do_sample: draw the next token; False = take the most likely one (greedy).
    temperature, top_k, top_p, min_p: shape the distribution drawn from; see `sampling`.
        top_k 0 = every token.
    repetition_penalty: above 1 makes tokens of prompt and answer less likely; greedy obeys it too.
    max_new_tokens: how many at most; max_length is the same with the prompt counted.
    eos_token_id: the id, or several, that end a row; [] = none.
    pad_token_id: fills a row that has ended.
    bos_token_id: begins an empty prompt.
    stop_strings: the text, or several, that end a row.
    num_beams, length_penalty, early_stopping: of beam search; see `beam`.
    num_return_sequences: answers to each prompt.
    seed: of the generator that draws.
    cache_implementation: "dynamic" or "static".
    extra: what else the file holds, kept as it is.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    stop_strings: str | list[str] | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    seed: int | None = None
    cache_implementation: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    _order = ()  # the fields as they stood in the file
    _end = "\n"  # some releases end the file with a newline, some do not

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationConfig:
        """From the parsed file. Unknown fields are kept, and the order of all."""
        known = {name: value for name, value in values.items() if name in OPTIONS}
        extra = {name: value for name, value in values.items() if name not in OPTIONS}
        config = cls(**known, extra=extra)
        config._order = tuple(values)
        return config

    @classmethod
    def from_json(cls, text: str) -> GenerationConfig:
        """From the text of a `generation_config.json`.

        Raises:
            ValueError: not a JSON object.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object of settings, not a {type(values).__name__}")
        config = cls.from_dict(values)
        config._end = "\n" if text.endswith("\n") else ""
        return config

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GenerationConfig | None:
        """What `generation_config.json` in `folder` says; None if there is none.

        Raises:
            ValueError: the file is not a JSON object.
        """
        path = Path(folder) / "generation_config.json"
        if not path.is_file():
            return None
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:  # bad JSON, bad UTF-8
            raise ValueError(f"{path} is not a generation config: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """What was said, in the order of the file it came from; what was added later follows."""
        own = {name: getattr(self, name) for name in OPTIONS}
        said = {n: value for n, value in own.items() if value is not None or n in self._order}
        said |= self.extra
        order = dict.fromkeys((*(n for n in self._order if n in said), *said))
        return {name: said[name] for name in order}

    def to_json(self) -> str:
        """The text of `generation_config.json`, laid out as the releases lay it out."""
        return json.dumps(self.to_dict(), indent=2) + self._end

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `generation_config.json`, by a temporary name and a rename. Returns its path."""
        return write_whole(Path(folder) / "generation_config.json", self.to_json().encode())

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"GenerationConfig({said})"


OPTIONS = tuple(f.name for f in fields(GenerationConfig) if f.name != "extra")
