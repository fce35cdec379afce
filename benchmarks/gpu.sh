#!/usr/bin/env bash
# On a machine with a GPU, within 6 minutes: tests/cuda, then decoding beside transformers' compiled
# step at the shapes of 0.5B and 7B, random weights. Writes gpu.json (or $1) with the device's name.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import torch, sys; torch.cuda.is_available() or sys.exit("no GPU that torch can see")'
timeout 120 "$python" -m pytest tests/cuda -m cuda -q || echo "tests/cuda: FAILED"
timeout 230 "$python" - "${1:-gpu.json}" <<'PYTHON'
import json, sys, time
import torch, transformers
import qwen2_edu

def gb_a_second():
    block = torch.ones(1 << 28, dtype=torch.int32, device="cuda")
    other, best = torch.empty_like(block), 0
    for _ in range(10):
        torch.cuda.synchronize(); began = time.perf_counter()
        other.copy_(block)
        torch.cuda.synchronize(); best = max(best, 2 * block.nbytes / (time.perf_counter() - began))
    return best / 1e9

def rate(model, **options):
    ids = torch.arange(1000, 1064, device="cuda")[None]
    seconds = []
    for n in (1, 129) * 3:  # the first round compiles
        torch.cuda.synchronize(); began = time.perf_counter()
        model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0, **options)
        torch.cuda.synchronize(); seconds.append(time.perf_counter() - began)
    return 128 / (min(seconds[3::2]) - min(seconds[2::2]))

figures = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy GB/s": gb_a_second()}
with torch.no_grad():
    for name in ("Qwen2-0.5B", "Qwen2-7B"):
        config = qwen2_edu.released_config(name)
        with torch.device("cuda"):
            torch.set_default_dtype(torch.bfloat16)
            ours = qwen2_edu.Qwen2ForCausalLM(config).eval()
            torch.set_default_dtype(torch.float32)
        read = sum(p.nbytes for p in ours.parameters())
        read -= 0 if config.tie_word_embeddings else ours.get_input_embeddings().weight.nbytes
        found = {"fast": rate(ours, fast=True), "plain": rate(ours)}
        found["GB/s"] = found["fast"] * read / 1e9
        del ours; torch.cuda.empty_cache()
        fields = transformers.Qwen2Config(**config.to_dict())
        with torch.device("cuda"):
            theirs = transformers.AutoModelForCausalLM.from_config(fields, dtype=torch.bfloat16).eval()
        found["transformers, compiled"] = rate(theirs, cache_implementation="static")
        del theirs; torch.cuda.empty_cache()
        figures[name] = found
        print(name, found, flush=True)
json.dump(figures, open(sys.argv[1], "w"), indent=2)
PYTHON
