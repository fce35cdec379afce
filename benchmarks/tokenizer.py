"""How fast are the two tokenizers, beside `tokenizers` and `tiktoken`, on natural mixed text?

    python benchmarks/tokenizer.py

One process, one thread, all engines in turn on the same texts; every engine's ids are compared.
"Cold" is the first pass over the texts by a fresh tokenizer, "warm" the median of later passes over
the same texts: `Qwen2Tokenizer` and `tokenizers` remember pieces, so both numbers matter.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import glob
import random
import statistics
import sysconfig
import tempfile
import time
import unicodedata
from collections.abc import Callable

import tiktoken
import tokenizers

from qwen2_edu import bpe
from qwen2_edu.tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

PASSES = 5
PHRASES = [
    "生活的真谛是在于不断地学习和创造，预训练模型可以减少计算消耗和碳排放，并且节省时间。",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку в тихом осеннем лесу, 1945 года.",
    "هذا نص تجريبي باللغة العربية لقياس سرعة المجزئ على نصوص طبيعية مختلطة.",
    "यह एक परीक्षण वाक्य है जो गति मापने के लिए हिन्दी में लिखा गया है।",
    "이것은 토크나이저의 속도를 측정하기 위한 한국어 문장입니다.",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "Ein naïver Bär überquerte 1999 die Straße; l'été dernier, à Noël, où était-il?",
    "👨‍👩‍👧 emoji 🤗 and maths ∑ᵢ αᵢ² ≤ ∞ — “quotes” … ½ km",
]


def texts() -> list[str]:
    """English prose and code from Python's own library, and shuffled phrases in eight scripts."""
    rng = random.Random(0)
    files = sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/*.py"))[:60]
    found = [open(file, encoding="utf-8", errors="ignore").read() for file in files]
    for phrase in PHRASES * 120:
        words = phrase.split() if " " in phrase else list(phrase)
        rng.shuffle(words)
        found.append((" " if " " in phrase else "").join(words))
    rng.shuffle(found)
    return found


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    data = texts()
    size = sum(len(text.encode()) for text in data)
    with tempfile.TemporaryDirectory() as folder:
        Qwen2TokenizerFast.from_pretrained("qwen2").save_pretrained(folder)

        def released(cls):
            return lambda: cls.from_pretrained("qwen2")

        def saved(cls):
            return lambda: cls.from_pretrained(folder)

        def read_tokenizers():
            return tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")

        vocab = Qwen2Tokenizer.from_pretrained("qwen2").vocab

        def read_tiktoken():
            return tiktoken.Encoding(
                "qwen2", pat_str=bpe.PATTERN, mergeable_ranks=vocab, special_tokens={}
            )

        nfc = unicodedata.normalize
        engines = {
            "tokenizers": (read_tokenizers, lambda t: [t.encode(x).ids for x in data]),
            "Qwen2Tokenizer": (released(Qwen2Tokenizer), lambda t: t(data).input_ids),
            "Qwen2TokenizerFast": (released(Qwen2TokenizerFast), lambda t: t(data).input_ids),
            "tiktoken": (
                read_tiktoken,
                lambda t: [t.encode_ordinary(nfc("NFC", x)) for x in data],
            ),
        }
        print(f"{len(data)} texts, {size / 1e6:.2f} MB of UTF-8; MB/s, ratio to tokenizers")
        print(f"{'':20}{'load s':>8}{'cold':>9}{'ratio':>7}{'warm':>9}{'ratio':>7}")
        ids, cold, warm, load = {}, {}, {}, {}
        for name, (make, encode) in engines.items():
            times, first = [], []
            for _ in range(3):
                start = time.perf_counter()
                tokenizer = make()
                times.append(time.perf_counter() - start)
                first.append(seconds(lambda e=encode, t=tokenizer: e(t)))
            load[name], cold[name] = statistics.median(times), statistics.median(first)
            passes = [seconds(lambda e=encode, t=tokenizer: e(t)) for _ in range(PASSES)]
            warm[name] = statistics.median(passes)
            ids[name] = encode(tokenizer)
            assert ids[name] == ids["tokenizers"], f"{name} gives other ids"
            print(
                f"{name:20}{load[name]:8.2f}"
                f"{size / cold[name] / 1e6:9.2f}{cold['tokenizers'] / cold[name]:7.2f}"
                f"{size / warm[name] / 1e6:9.2f}{warm['tokenizers'] / warm[name]:7.2f}"
            )
        for cls in (Qwen2Tokenizer, Qwen2TokenizerFast):
            with_offsets = cls.from_pretrained("qwen2")
            with_offsets(data)
            taken = seconds(lambda t=with_offsets: t(data, return_offsets_mapping=True))
            print(f"{cls.__name__} with offsets: {size / taken / 1e6:.2f} MB/s")
            print(f"{cls.__name__} from a folder: {seconds(saved(cls)):.2f} s to load")

    for text in ("a" * 80_000, " " * 80_000, "生" * 80_000):
        slow = Qwen2Tokenizer.from_pretrained("qwen2")
        taken = seconds(lambda t=slow, x=text: t.encode(x))
        print(f"Qwen2Tokenizer, {len(text)} times {text[0]!r}: {taken:.3f} s")


if __name__ == "__main__":
    main()
