"""Tokens a second beside transformers and llama.cpp, on the released weights: the one table.

All in turns, so that a machine whose speed drifts slows all; medians. llama.cpp reads GGUF files
that `save_gguf` writes here.

    python benchmarks/decode.py [--parts speed batch quality lookup peers start] [--json FILE]

`start` (a fresh process, with and without built kernels) starts the command line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from qwen2_edu import AutoTokenizer, DynamicCache, Qwen2ForCausalLM
from qwen2_edu.decoding.fast import FastStep
from qwen2_edu.files.gguf_model import save_gguf

TEXT = Path(__file__).with_name("text.txt")
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "repetition_penalty": 1.0}
KINDS = {"bf16": None, "int8": "int8", "int4": "int4"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    figures: dict = {"torch": torch.__version__, "threads": arguments.threads}
    for part in arguments.parts:
        print(f"== {part}", flush=True)
        figures[part] = PARTS[part](arguments)
        for name, value in figures[part].items():
            print(f"{name:44} {value}", flush=True)
        gc.collect()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def ours(kind: str | None = None, dtype: str = "bfloat16") -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained("released", dtype=dtype, quantize=kind)


def in_turns(work: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of what each answers, run A B C A B C … after one round of warm-up."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, run in work.items():
            found[name].append(run())
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def seconds(run: Callable) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def bandwidth(model: Qwen2ForCausalLM) -> float:
    """GB/s at which the weights can be read: their bytes added up as integers, the best of three.
    Of these weights, as a virtual machine may read one part of its memory at half the speed of
    another.
    """
    large = [p.data.flatten().view(torch.int64) for p in model.parameters() if p.nbytes > 1 << 20]
    best = min(seconds(lambda: [weights.sum() for weights in large]) for _ in range(3))
    return sum(weights.nbytes for weights in large) / best / 1e9


def bytes_a_step(model: Qwen2ForCausalLM) -> int:
    """What one token reads: all but the embedding, of which it looks up one row."""
    embedding = model.get_input_embeddings()
    kept = (
        0
        if model.lm_head.weight is embedding.weight
        else sum(p.nbytes for p in embedding.parameters())
    )
    return sum(p.nbytes for p in model.parameters()) - kept


def rate(model, ids, tokens: int, **options) -> float:
    """Tokens a second after the first."""
    times: list[float] = []

    def look(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        times.append(time.perf_counter())  # a token of each row is chosen
        return torch.zeros(len(ids), dtype=torch.bool)

    options |= {"max_new_tokens": tokens + 1, "stopping_criteria": [look]}
    model.generate(ids, **GREEDY, **options)
    return len(ids) * tokens / (times[-1] - times[0])


def llama(path: Path, threads: int) -> ProcessPoolExecutor:
    """llama.cpp on a GGUF file, in a process of its own: in one process the OpenMP threads of both
    are more than the processors, and then OpenMP lets them sleep between any two products.
    """
    start = {"mp_context": get_context("spawn"), "initializer": open_llama}
    return ProcessPoolExecutor(1, **start, initargs=(str(path), threads))


def open_llama(path: str, threads: int) -> None:
    global server
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = path
    options.n_ctx, options.n_parallel, options.verbosity = 1024, 1, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)


def llama_rate(tokens: int) -> float:
    asked = {"prompt": list(range(1000, 1064)), "n_predict": tokens + 1, "temperature": 0}
    asked |= {"ignore_eos": True, "cache_prompt": False, "return_tokens": False}
    answer = server.handle_completions(asked | {"timings_per_token": True})
    return answer["timings"]["predicted_per_second"]


def by_transformers(folder: str, attention: str = "sdpa"):
    """The model saved in a folder, in bf16, as transformers has it."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {"dtype": torch.bfloat16, "attn_implementation": attention}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    return model


def speed(arguments) -> dict:
    """Decode and prefill, one row."""
    models = {name: ours(kind) for name, kind in KINDS.items()}
    ids = torch.arange(1000, 1064)[None]
    long = torch.randint(0, 150000, (1, 512))
    with tempfile.TemporaryDirectory() as folder:
        models["bf16"].save_pretrained(folder)
        theirs = by_transformers(folder)
        tokenizer, servers = AutoTokenizer.from_pretrained("released"), {}
        for form in ("BF16", "Q8_0", "Q4_0"):
            path = save_gguf(models["bf16"], tokenizer, Path(folder) / f"{form}.gguf", form)
            servers[form] = llama(path, arguments.threads)
        n = arguments.tokens
        work = {f"fast {k}": lambda m=m: rate(m, ids, n, fast=True) for k, m in models.items()}
        work |= {
            f"llama.cpp {k}": lambda s=s: s.submit(llama_rate, n).result()
            for k, s in servers.items()
        }
        work["plain bf16"] = lambda: rate(models["bf16"], ids, n // 3)
        work["transformers bf16 sdpa"] = lambda: rate(theirs, ids, n // 3)
        work |= {f"{k}: GB/s read": lambda m=m: bandwidth(m) for k, m in models.items()}
        found = in_turns(work, arguments.rounds)
        for server in servers.values():
            server.shutdown()
        with torch.no_grad():
            prefill = in_turns(
                {
                    "prefill 512, tokens/s": lambda: (
                        512 / seconds(lambda: models["bf16"](long, logits_to_keep=1))
                    ),
                    "prefill 512, transformers": lambda: (
                        512 / seconds(lambda: theirs(long, logits_to_keep=1))
                    ),
                },
                arguments.rounds + 2,
            )
    figures = {name: round(value, 2) for name, value in (found | prefill).items()}
    for name, model in models.items():
        reached = found[f"fast {name}"] * bytes_a_step(model) / 1e9
        share = reached / found[f"{name}: GB/s read"]
        figures[f"fast {name}: GB/s, share of read"] = f"{reached:.1f}, {share:.0%}"
        figures[f"{name}: MB of weights"] = round(sum(p.nbytes for p in model.parameters()) / 1e6)
    return figures


def batch(arguments) -> dict:
    """Decode of several rows, and long prompts: the fast step beside the plain one."""
    model, figures = ours(), {}
    for rows in (4, 16):
        ids = torch.randint(0, 150000, (rows, 64))
        work = {
            name: lambda o=options, ids=ids: rate(model, ids, 8, **o)
            for name, options in (("fast", {"fast": True}), ("plain", {}))
        }
        found = in_turns(work, arguments.rounds)
        figures |= {f"{rows} rows, {name}, tokens/s": round(v, 1) for name, v in found.items()}
    return figures


def quality(arguments) -> dict:
    """Nats a token, and greedy ids."""
    ids = AutoTokenizer.from_pretrained("released")(TEXT.read_text("utf-8"), return_tensors="pt")
    ids, figures, answers = ids.input_ids[:, :1000], {}, {}
    for name, kind, dtype in (
        ("released GGUF, fp32", None, "float32"),
        ("bf16", None, "bfloat16"),
        ("int8", "int8", "bfloat16"),
        ("int4", "int4", "bfloat16"),
    ):
        model = ours(kind, dtype)
        step, cache = FastStep(model), DynamicCache(model.config)
        with torch.no_grad():
            pieces = [step(piece, past_key_values=cache).logits for piece in ids.split(8, dim=1)]
        logits = torch.cat(pieces, dim=1)[0, :-1].float()
        figures[f"{name}, nats a token"] = round(float(cross_entropy(logits, ids[0, 1:])), 4)
        options = {"max_new_tokens": 200, **GREEDY}
        answers[name] = model.generate(ids[:, :64], fast=True, **options)[0, 64:]
        if name == "bf16":
            answers["bf16, plain"] = model.generate(ids[:, :64], **options)[0, 64:]
            plain = model
    for name, answer in answers.items():
        differ = (answer != answers["bf16, plain"]).nonzero().flatten().tolist()
        figures[f"{name}, first other id than plain bf16"] = differ[0] if differ else "none of 200"
        if differ and name == "bf16":
            so_far = torch.cat((ids[0, :64], answer[: differ[0]]))[None]
            with torch.no_grad():
                best = plain(so_far, logits_to_keep=1).logits[0, -1].float().topk(2)
            figures["the two best there, logits"] = best.values.tolist()
    return figures


def lookup(arguments) -> dict:
    """Editing code, with prompt lookup."""
    tokenizer, figures = AutoTokenizer.from_pretrained("released"), {}
    code = Path(__file__).parents[1].joinpath("qwen2_edu/layers.py").read_text("utf-8")
    code = code[code.index("class RMSNorm") : code.index("class SwiGLU")]
    ask = (
        f"Rename the class RMSNorm to Norm and answer with the whole code.\n\n```python\n{code}```"
    )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": ask}], add_generation_prompt=True, return_tensors="pt"
    )
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    for name, kind in KINDS.items():
        model, looks = ours(kind), {"prompt_lookup_num_tokens": 10}
        options = {"max_new_tokens": 200, "fast": True, "repetition_penalty": 1.0}
        options |= {"do_sample": False}
        out = {}
        work = {
            "plain": lambda m=model, o=out, x=options: seconds(
                lambda: o.update(plain=m.generate(ids, **x))
            ),
            "lookup": lambda m=model, o=out, x=options | looks: seconds(
                lambda: o.update(m.generate(ids, return_dict_in_generate=True, **x))
            ),
            "prompt": lambda m=model: seconds(
                lambda: m.generate(ids, max_new_tokens=1, do_sample=False)
            ),
        }
        found = in_turns(work, arguments.rounds - 1)
        gain = (found["plain"] - found["prompt"]) / (found["lookup"] - found["prompt"])
        kept = sum(out["accepted"]) / max(1, len(out["accepted"]))
        same = torch.equal(out["plain"], out["sequences"])
        figures[f"{name}, decoding faster by"] = (
            f"{gain:.2f}, {kept:.1f} kept a guess, same: {same}"
        )
    return figures


def peers(arguments) -> dict:
    """Decode by others on the same weights: transformers, and torchao's int8 and int4 in it."""
    import transformers

    ids, n = torch.arange(1000, 1064)[None], arguments.tokens // 3
    compiling = transformers.CompileConfig(mode="default", fullgraph=False)
    compiling._compile_all_devices = True  # else on a GPU alone
    with tempfile.TemporaryDirectory() as folder:
        own = ours()
        own.save_pretrained(folder)
        models = {f"transformers, {how}": by_transformers(folder, how) for how in ("eager", "sdpa")}
        try:
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            four = PrototypeInt4WeightOnlyConfig(group_size=32)
            for kind, weights in {"int8": Int8WeightOnlyConfig(), "int4": four}.items():
                model = models[f"torchao {kind}, head too"] = by_transformers(folder)
                quantize_(model, weights)
        except ImportError as error:
            print(f"without torchao (pip install torchao): {error}")
        work = {name: lambda m=m: rate(m, ids, n) for name, m in models.items()}
        static = {"cache_implementation": "static", "compile_config": compiling}
        compiled = models["transformers, sdpa"]
        work["transformers, compiled"] = lambda: rate(compiled, ids, n, **static)
        work["fast bf16"] = lambda: rate(own, ids, n, fast=True)
        return {name: round(value, 2) for name, value in in_turns(work, arguments.rounds).items()}


def start(arguments) -> dict:
    """Seconds from a command line to its first token, in a fresh process."""
    with tempfile.TemporaryDirectory() as kept:
        env = {**os.environ, "TORCH_EXTENSIONS_DIR": kept}
        run = [sys.executable, "-m", "qwen2_edu", "generate", "Hello", "--max-new-tokens", "2"]

        def first(*more: str) -> float:
            began = time.perf_counter()
            with subprocess.Popen([*run, *more], env=env, stdout=subprocess.PIPE) as command:
                command.stdout.read(1)
                passed = time.perf_counter() - began
                command.stdout.read()
            assert command.returncode == 0
            return passed

        figures, released = {"cold, tiny": first()}, ["-m", "released", "--dtype", "bfloat16"]
        ways = {"tiny": [], "released bf16": released}
        ways |= {f"released {kind}": [*released, "--quantize", kind] for kind in ("int8", "int4")}
        ways["released fp32"] = ["-m", "released", "--dtype", "float32"]
        work = {f"warm, {name}": partial(first, *more) for name, more in ways.items()}
        figures |= in_turns(work, arguments.rounds)
    return {name: round(value, 2) for name, value in figures.items()}


PARTS = {"speed": speed, "batch": batch, "quality": quality, "lookup": lookup}
PARTS |= {"peers": peers, "start": start}

if __name__ == "__main__":
    main()
