"""Which device should hold a model, and is there room?"""

from __future__ import annotations

import contextlib

import torch

HEADROOM = 1.1  # activations and a short cache come on top of the weights


def choose_device(
    device: str | int | torch.device | None,
    device_map: str | int | torch.device | dict | None,
    size: int,
) -> torch.device:
    """One device for a whole model of `size` bytes: a `device` (None = the CPU) or a `device_map`:
    "auto", a device, or {"": device}.

    ValueError: no such device here, several, or both given. MemoryError: "auto", and no room.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r}, device_map={device_map!r}: give one of the two")
    if device_map == "auto":
        return _roomiest(size)
    if isinstance(device_map, dict):
        if len({str(part) for part in device_map.values()}) != 1:
            hint = "a model lives on one device here; give 'auto', a device, or {'': device}"
            raise ValueError(f"device_map={device_map!r}: {hint}")
        device_map = next(iter(device_map.values()))
    choice = next((said for said in (device, device_map) if said is not None), "cpu")
    try:
        found = torch.device("cuda", choice) if isinstance(choice, int) else torch.device(choice)
    except (RuntimeError, ValueError, TypeError):
        raise ValueError(f"{choice!r} is no device: try 'cpu', 'cuda', 'cuda:1' or 'mps'") from None
    counts = {"mps": int(torch.backends.mps.is_available()), "cpu": 1}
    counts |= {"cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    count = counts.get(found.type, 0)
    if (found.index or 0) >= count:
        raise ValueError(f"no device '{found}' here: torch sees {count} of {found.type}; try 'cpu'")
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    return found


def free_memory() -> dict[str, int | None]:
    """Free bytes by device, best device first; None = the system does not say."""
    cards = {f"cuda:{i}": torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    free: dict[str, int | None] = dict(sorted(cards.items(), key=lambda item: -item[1]))
    if torch.backends.mps.is_available():
        free["mps"] = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    free["cpu"] = None
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as file:  # Linux
        rows = (row.split() for row in file if row.startswith("MemAvailable"))
        free["cpu"] = int(next(rows)[1]) * 1024
    return free


def _roomiest(size: int) -> torch.device:
    needed, free = size * HEADROOM, free_memory()
    for device, room in free.items():
        if room is None or room >= needed:
            return torch.device(device)
    listed = ", ".join(f"{device} has {room / 1e9:.1f} GB free" for device, room in free.items())
    hint = "try dtype='bfloat16', a smaller model, or device_map='cpu', which reads from disk"
    raise MemoryError(f"the model needs about {needed / 1e9:.1f} GB: {listed}; {hint}")
