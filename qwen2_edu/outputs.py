"""What models answer: fields by name and by number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils._pytree import register_pytree_node


class Output(dict):
    """What a model answers, as transformers has it. Fields by name, `out.logits`, `out["logits"]`,
    or by number among those that are not None: `out[0]`, `out[:2]`, `out.to_tuple()`.
    """

    def __init_subclass__(cls) -> None:  # so that `torch.export` knows it
        def build(values: Iterable, names: list[str]) -> Output:
            return cls(**dict(zip(names, values, strict=True)))

        name = f"qwen2_edu.{cls.__name__}"
        take = lambda out: (list(out.values()), list(out))  # noqa: E731
        register_pytree_node(cls, take, build, serialized_type_name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if value is not None:
            super().__setitem__(name, value)

    __setitem__ = __setattr__

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        """The fields that are not None."""
        return tuple(self.values())
