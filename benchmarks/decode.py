"""Load, prefill and decode beside transformers, on the exact shape of Qwen2-0.5B.

Random weights, saved once by transformers in bf16; both libraries then work on the same files in
the same process, in turns, so that a machine whose speed drifts slows both. Medians are printed,
and ratios as transformers' time over ours: above 1 is faster.

    python benchmarks/decode.py [--threads 2] [--rounds 5] [--device cpu]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import qwen2_edu

PROMPT, LONG_PROMPT = 64, 512
NEW = {"sdpa": 32, "eager": 8}  # eager decoding is slow in bf16 on a CPU, in both libraries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder:
        save_random_weights(folder)
        figures = compare(folder, arguments.rounds, arguments.device)
    cuda = arguments.device.startswith("cuda")
    figures["machine"] = (
        torch.cuda.get_device_name() if cuda else f"CPU, {arguments.threads} threads"
    )
    figures["versions"] = f"torch {torch.__version__}, transformers {transformers.__version__}"
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def save_random_weights(folder: str) -> None:
    """A checkpoint of Qwen2-0.5B's shape by transformers, every parameter random."""
    fields = qwen2_edu.released_config("Qwen2-0.5B").to_dict()
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)


def compare(folder: str, rounds: int, device: str) -> dict:
    """All figures: medians in seconds of each library and attention backend."""
    libraries = {"qwen2_edu": qwen2_edu, "transformers": transformers}

    def load(library, backend: str):
        model = library.Qwen2ForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation=backend
        )
        return model.to(device).eval()

    seconds = {
        "load": in_turns({n: lambda m=m: load(m, "sdpa") for n, m in libraries.items()}, rounds)
    }
    models = {(n, b): load(m, b) for n, m in libraries.items() for b in NEW}
    prompt = torch.randint(0, 150000, (1, PROMPT), device=device)
    long_prompt = torch.randint(0, 150000, (1, LONG_PROMPT), device=device)
    greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate(model, tokens: int):
        return model.generate(prompt, max_new_tokens=tokens, **greedy)

    def prefill(model):
        with torch.inference_mode():
            model(long_prompt, logits_to_keep=1)

    equal = {}
    for backend in NEW:
        chosen = {n: models[n, backend] for n in libraries}
        new = NEW[backend]
        answers = [generate(model, new).tolist() for model in chosen.values()]
        equal[backend] = answers[0] == answers[1]
        whole = in_turns({n: lambda m=m, k=new: generate(m, k) for n, m in chosen.items()}, rounds)
        first = in_turns({n: lambda m=m: generate(m, 1) for n, m in chosen.items()}, rounds)
        seconds[f"decode, per token ({backend})"] = {
            n: (whole[n] - first[n]) / (new - 1) for n in libraries
        }
        seconds[f"prefill, {LONG_PROMPT} tokens ({backend})"] = in_turns(
            {n: lambda m=m: prefill(m) for n, m in chosen.items()}, rounds
        )
    return {"seconds": seconds, "greedy ids equal": equal}


def in_turns(work: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of each, run A B A B … after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, run in work.items():
            gc.collect()
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def report(figures: dict) -> None:
    print(f"Qwen2-0.5B's shape, random weights, bf16, {figures['machine']}, {figures['versions']}")
    print(f"{'':32}{'qwen2_edu':>12}{'transformers':>14}{'ratio':>8}")
    for name, by_library in figures["seconds"].items():
        ours, theirs = by_library["qwen2_edu"], by_library["transformers"]
        print(f"{name:32}{ours * 1e3:>9.1f} ms{theirs * 1e3:>11.1f} ms{theirs / ours:>8.2f}")
    print(f"greedy ids equal after {PROMPT} tokens: {figures['greedy ids equal']}")


if __name__ == "__main__":
    main()
