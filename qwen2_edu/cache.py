"""Keys and values of the tokens already read, so that a new token costs one step, not all of them.

A cache keeps keys and values (B, G, S, D) for every layer, and for every *kind* of layer the
position of each key (B, S), -1 for padding and empty slots. The visibility rule needs nothing else,
so the slots may stand in any order: a sliding layer is a ring of `window` slots. Token p lies in
slot p mod window and overwrites one that no query can see any more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .checks import checked
from .config import SLIDING, Qwen2Config


class Growing:
    """Columns appended to a tensor (B, G, S, D); a ring once `window` columns are full.

    With a window of 3, tokens 0 … 4 one at a time leave the slots [3, 4, 2]. Reading 3 and 4 at
    once from [0, 1, 2], token 3 still sees 1 and 2, so all of [0, 1, 2, 3, 4] is answered first.
    """

    def __init__(self, window: int | None = None):
        self.window, self.data = window, None

    def append(self, new: Tensor, start: int) -> Tensor:
        """Store columns start … start+T-1; answer all that their queries may need, (B, G, S, D)."""
        T, end, limit = new.shape[2], start + new.shape[2], self.window
        if start == 0 and (limit is None or end <= limit):
            self.data = new
            return new
        if start > 0:  # a backward pass needs the old one unchanged
            kept = new.requires_grad or self.data.requires_grad
            self.data = self.data.clone() if kept else _writable(self.data)
        if limit is None or end <= limit:
            if self.data.shape[2] < end:  # a quarter more than asked for, so that copying is rare
                room = end + end // 4 + 16
                self.data = _widened(self.data[:, :, :start], min(room, limit or room))
            self.data[:, :, start:end] = new
            return self.data[:, :, :end]
        if T == 1:
            self.data[:, :, start % limit] = new[:, :, 0]
            return self.data
        # Early queries of this chunk still see what its late tokens overwrite: answer, then store.
        old = self.data[:, :, : min(start, limit)] if start > 0 else new[:, :, :0]
        last = torch.arange(start, end, device=new.device)[-limit:] % limit
        self.data = _widened(old, limit)
        self.data[:, :, last] = new[:, :, -limit:]
        return torch.cat((old, new), dim=2) if start > 0 else new

    def filled(self, length: int) -> Tensor:
        """The columns that hold something, after `length` tokens."""
        return self.data[:, :, :length]


def _writable(data: Tensor) -> Tensor:
    """The tensor, or a copy if it was made under inference_mode and we are outside."""
    if torch.compiler.is_compiling() or not data.is_inference():
        return data
    return data if torch.is_inference_mode_enabled() else data.clone()


def _widened(columns: Tensor, S: int) -> Tensor:
    """A copy with room for S columns, (B, G, S, D); the new ones are 0."""
    return pad(columns, (0, 0, 0, S - columns.shape[2]))


class Fixed:
    """The same in a buffer that never moves or grows, written at a *tensor* position."""

    def __init__(self, columns: int, window: int | None = None, fill: int = 0):
        self.wraps = window is not None and window < columns
        self.columns, self.fill, self.data = window if self.wraps else columns, fill, None

    def append(self, new: Tensor, start: Tensor) -> Tensor:
        """Store columns start … start+T-1. Returns the whole buffer, empty slots and all."""
        T = new.shape[2]
        if self.data is None or len(self.data) != len(new):
            self.data = new.new_full((*new.shape[:2], self.columns, new.shape[3]), self.fill)
        self.data = _writable(self.data)
        slots = start[None] if T == 1 else start + torch.arange(T, device=new.device)
        if not self.wraps:
            return self.data.index_copy_(2, slots, new)
        seen = torch.cat((self.data, new), dim=2) if T > 1 else self.data
        last = slots[-self.columns :] % self.columns  # the earlier ones would be overwritten
        self.data.index_copy_(2, last, new[:, :, -self.columns :])
        return seen

    def filled(self, length: int) -> Tensor:
        """All slots: which of them are empty, their positions tell."""
        return self.data


class Cache:
    """What `DynamicCache` and `StaticCache` share; not used by itself.

    `length` is the clock: tokens read so far, padding included. The model advances it once per
    forward pass, after all layers have stored their columns. A pass that was interrupted may have
    overwritten slots of a ring: drop the cache then.
    """

    max_length: float = float("inf")  # tokens it can hold

    def __init__(self, config: Qwen2Config):
        self.windows = config.window_by_type
        kinds = config.layer_types
        self.layers = [tuple(self._columns(self.windows[kind]) for _ in "kv") for kind in kinds]
        self.positions = {kind: self._columns(w, fill=-1) for kind, w in self.windows.items()}
        self.length: int | Tensor = 0
        self.pads: int | Tensor = 0  # what rotary positions leave out: padding on the left, (B, 1)

    def _columns(self, window: int | None, fill: int = 0) -> Growing | Fixed:
        return Growing(window)

    def place(self, positions: Tensor) -> dict[str, Tensor]:
        """Note the positions of T new tokens, (B, T), -1 = padding. Answer, for each kind of layer,
        the position of every key that its queries will meet, (B, S).

        ValueError if the cache holds another number of rows, or has no room for the tokens.
        """
        seen = not torch.compiler.is_compiling()  # else, or in a CUDA graph, there are no numbers
        if seen and not (positions.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._check_room(*positions.shape)
        columns = positions[:, None, :, None]  # (B, 1, T, 1): stored like the keys
        placed = {}
        for kind, kept in self.positions.items():  # each its own copy: a ring is written in place
            placed[kind] = kept.append(columns.clone(), self.length)[:, 0, :, 0]
        return placed

    def _check_room(self, B: int, T: int) -> None:
        rows = {len(p.data) for p in self.positions.values() if p.data is not None}
        held, needed = self.get_seq_length(), self.get_seq_length() + T
        if held and rows - {B}:
            raise ValueError(
                f"this cache holds {rows.pop()} rows and {B} arrive: start another, or reorder() it"
            )
        if needed > self.max_length:
            raise ValueError(
                f"this cache holds {self.max_length} tokens and {needed} are needed: make it larger"
            )

    def update(self, k: Tensor, v: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, G, T, D); answer all it may see, (B, G, S, D)."""
        keys, values = self.layers[layer_idx]
        return keys.append(k, self.length), values.append(v, self.length)

    def advance(self, tokens: int) -> None:
        """Move the clock; called by the model after the last layer."""
        self.length = self.length + tokens

    def get_seq_length(self) -> int:
        """Tokens read so far, padding included."""
        return int(self.length)

    def key_positions(self, kind: str) -> Tensor:
        """The position of each key that layers of a kind hold, (B, S); -1 = padding or empty.
        ValueError if nothing was read yet, or the model has no such layers.
        """
        if kind not in self.positions or self.positions[kind].data is None:
            raise ValueError(f"this cache holds no keys of {kind!r}; it has {list(self.positions)}")
        return self.positions[kind].filled(self.get_seq_length())[:, 0, :, 0]

    def crop(self, length: int) -> None:
        """Forget the tokens from position `length` on; -n forgets the last n, 0 all. ValueError if
        there are fewer, or if a sliding layer has already overwritten what would be needed.
        """
        now, window = self.get_seq_length(), self.windows.get(SLIDING)
        length += now if length < 0 else 0
        if not 0 <= length <= now:
            raise ValueError(f"cannot crop to {length} tokens: the cache holds {now}")
        if window is not None and 0 < length < now and now > window:
            raise ValueError(
                f"cannot crop {now} tokens to {length}: sliding layers keep the last {window} "
                "alone, older ones are overwritten; start a new cache"
            )
        if length == 0:
            self.pads = 0
        elif isinstance(self.pads, Tensor) and length < now:  # no ring has wrapped yet
            kept = next(iter(self.positions.values())).data[:, 0, :length, 0]
            self.pads = (kept >= 0).cumsum(-1).eq(0).sum(-1, keepdim=True)
        self.advance(length - now)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row rows[i] was (beam search); rows may repeat, (B',)."""
        for columns in self._all_columns():
            if columns.data is not None:
                columns.data = self._moved(columns.data, rows)
        if isinstance(self.pads, Tensor):
            self.pads = self._moved(self.pads, rows)

    def _moved(self, data: Tensor, rows: Tensor) -> Tensor:
        return data.index_select(0, rows)

    def _all_columns(self) -> list[Growing | Fixed]:
        return [*self.positions.values(), *(columns for layer in self.layers for columns in layer)]

    def __repr__(self) -> str:
        kinds = [kind if w is None else f"{kind} of {w}" for kind, w in self.windows.items()]
        layers = f"{len(self.layers)} layers ({', '.join(kinds)})"
        return f"{type(self).__name__}: {self.get_seq_length()} tokens, {layers}"


class DynamicCache(Cache):
    """A cache that grows as tokens come; the default."""


class StaticCache(Cache):
    """A cache of fixed size: `torch.compile` sees the same shapes and addresses at every step.

    Args:
        config: of the model.
        max_length: tokens it can hold, prompt and answer together; more are a ValueError.
        device: where the model is.
    """

    def __init__(
        self, config: Qwen2Config, max_length: int, device: torch.device | str | None = None
    ):
        if not 1 <= max_length < 2**31:
            raise ValueError(f"max_length must be from 1 to 2**31 - 1 tokens, not {max_length}")
        self.max_length = max_length
        super().__init__(config)
        try:
            self.length = torch.zeros((), dtype=torch.int64, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device!r}: {str(error).splitlines()[0]}") from None

    def _columns(self, window: int | None, fill: int = 0) -> Fixed:
        return Fixed(self.max_length, window, fill)

    def advance(self, tokens: int) -> None:
        """Move the clock in place: a compiled step must find the same tensor again."""
        self.length = _writable(self.length).add_(tokens)

    def _moved(self, data: Tensor, rows: Tensor) -> Tensor:
        """In place where the rows stay as many: a recorded step reads the same memory again."""
        moved = data.index_select(0, rows)
        return _writable(data).copy_(moved) if len(moved) == len(data) else moved

    def crop(self, length: int) -> None:
        """As above; and since all slots are answered, those from `length` on are emptied."""
        super().crop(length)
        for columns in self._all_columns():
            if columns.data is not None:
                columns.data = _writable(columns.data)
                columns.data[:, :, self.get_seq_length() :] = columns.fill

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        self.crop(0)


for _name in ("key_positions", "crop", "reorder"):  # not at each step: looked at beforehand
    setattr(Cache, _name, checked(getattr(Cache, _name)))
