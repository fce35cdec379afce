#!/usr/bin/env bash
# On a machine with a GPU, within 6 minutes: tests/cuda, then decoding beside transformers' compiled
# step at the shapes of 0.5B and 7B, random weights. Writes gpu.json (or $1) with the device's name.
# PYTHON=... is a Python with torch for that GPU and what the tests need; else that of `make`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || { echo "gpu.sh: no $python: run make first, or set PYTHON=..."; exit 1; }
"$python" -c 'import torch, sys; torch.cuda.is_available() or sys.exit("gpu.sh: torch " + torch.__version__ + " sees no GPU")'
failed=0; timeout 120 "$python" -m pytest tests/cuda -m cuda -q || failed=1
timeout 230 "$python" - "${1:-gpu.json}" <<'PYTHON'
import json, statistics, sys, time
import torch, transformers
import qwen2_edu
from qwen2_edu.quantize import quantize

def gb_a_second():
    """A copy on the device, bytes read and bytes written."""
    block = torch.ones(1 << 28, dtype=torch.int32, device="cuda")
    other, best = torch.empty_like(block), 0
    for _ in range(10):
        torch.cuda.synchronize(); began = time.perf_counter()
        other.copy_(block)
        torch.cuda.synchronize(); best = max(best, 2 * block.nbytes / (time.perf_counter() - began))
    return best / 1e9

def build(config):
    """Ours in bf16 on the device, random weights."""
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = qwen2_edu.Qwen2ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    return model

def rate(model, rounds=3, **options):
    """Tokens a second after the first 32, and seconds to the second token of the first call."""
    ids, rates = torch.arange(1000, 1064, device="cuda")[None], []
    for _ in range(rounds + 1):
        times = []  # noted by the device itself: nobody waits for the clock
        def watch(ids, scores, **_):
            times.append(torch.cuda.Event(enable_timing=True)); times[-1].record()
            return torch.zeros(len(ids), dtype=torch.bool, device="cuda")
        model.generate(ids, max_new_tokens=161, do_sample=False, pad_token_id=0,
                       stopping_criteria=transformers.StoppingCriteriaList([watch]), **options)
        torch.cuda.synchronize()
        rates.append(128e3 / times[32].elapsed_time(times[160]))
        first = times[0].elapsed_time(times[1]) / 1e3 if len(rates) == 1 else first
    return {"tokens/s": statistics.median(rates[1:]), "s to start": first}

torch.manual_seed(0)
figures = {"device": torch.cuda.get_device_name(), "torch": torch.__version__,
           "transformers": transformers.__version__, "copy GB/s": gb_a_second()}
with torch.no_grad():
    for name in ("Qwen2-0.5B", "Qwen2-7B"):
        config = qwen2_edu.released_config(name)
        ours = build(config)
        read = sum(p.nbytes for p in ours.parameters())
        read -= 0 if config.tie_word_embeddings else ours.get_input_embeddings().weight.nbytes
        found = {"fast": rate(ours, fast=True), "plain": rate(ours, rounds=1)}
        found["share of copy"] = found["fast"]["tokens/s"] * read / 1e9 / figures["copy GB/s"]
        del ours; torch.cuda.empty_cache()
        fields = transformers.Qwen2Config(**config.to_dict())
        with torch.device("cuda"):
            theirs = transformers.AutoModelForCausalLM.from_config(fields, dtype=torch.bfloat16).eval()
        found["transformers, compiled"] = rate(theirs, cache_implementation="static")
        del theirs; torch.cuda.empty_cache()
        figures[name] = found
        print(name, found, flush=True)
        json.dump(figures, open(sys.argv[1], "w"), indent=2)
    for name in ("Qwen2-0.5B", "Qwen2-7B"):
        for kind in ("int8", "int4"):
            ours = quantize(build(qwen2_edu.released_config(name)), kind)
            figures[name][kind] = rate(ours, rounds=1, fast=True)
            print(name, kind, figures[name][kind], flush=True)
            json.dump(figures, open(sys.argv[1], "w"), indent=2)
            del ours; torch.cuda.empty_cache()
PYTHON
exit $failed
