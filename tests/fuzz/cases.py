"""What is fuzzed: for each family how to draw a case, and what must hold of it.

The right answer is transformers', but for `damage`, where any file must load or be refused by
ValueError or OSError.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import unicodedata
from functools import cache
from pathlib import Path

import torch
import transformers
from hypothesis import strategies as st

import qwen2_edu
from qwen2_edu.text.templates import QWEN2_5_TEMPLATE, QWEN2_TEMPLATE
from qwen2_edu.tokenizer import Qwen2Tokenizer, Qwen2TokenizerFast

V, PAD, BOS = 61, 2, 1
HEADS = """Model ForCausalLM ForSequenceClassification ForTokenClassification
ForQuestionAnswering""".split()
ROPES = [
    None,
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "truncate": False},
]
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}  # depends on how a text was cut into passes
seeds = st.integers(0, 2**31)
FIELDS = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
num_key_value_heads head_dim max_position_embeddings use_sliding_window sliding_window
tie_word_embeddings rope_theta rope_scaling attn_implementation num_labels""".split()


# -- models ----------------------------------------------------------------------------------------


@st.composite
def configs(draw, ropes=tuple(ROPES)):
    G, D, L = draw(st.integers(1, 3)), draw(st.sampled_from([4, 8, 6])), draw(st.integers(1, 4))
    slides = draw(st.lists(st.booleans(), min_size=L, max_size=L))
    return {
        "vocab_size": V,
        "hidden_size": draw(st.sampled_from([8, 12, 20])),
        "intermediate_size": draw(st.sampled_from([8, 20])),
        "num_hidden_layers": L,
        "num_attention_heads": G * draw(st.integers(1, 3)),
        "num_key_value_heads": G,
        "head_dim": D,
        "max_position_embeddings": 64,
        "layer_types": [("full_attention", "sliding_attention")[s] for s in slides],
        "use_sliding_window": any(slides),
        "sliding_window": draw(st.integers(1, 7)),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from([10000.0, 100.0])),
        "rope_scaling": draw(st.sampled_from(ropes)),
        "attn_implementation": draw(st.sampled_from(["sdpa", "eager"])),
        "num_labels": draw(st.integers(1, 4)),
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": None,
    }


def twins(config, seed, head="ForCausalLM"):
    """Ours and theirs with the same parameters, all random."""
    ours = getattr(qwen2_edu, f"Qwen2{head}")(qwen2_edu.Qwen2Config(**config)).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(ours.named_parameters()):
            scale = 0.5 if "bias" in name else 0.3
            weight.copy_(("norm" in name) + scale * torch.randn(weight.shape, generator=noise))
    their_config = transformers.Qwen2Config(**copy.deepcopy(config))
    theirs = getattr(transformers, f"Qwen2{head}")(their_config).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def texts_of(pads, T, seed, right=False):
    """Ids (B, T) and their mask, with so many padding tokens in each row."""
    pads = torch.tensor(pads)[:, None]
    mask = torch.arange(T) < T - pads if right else torch.arange(T) >= pads
    ids = torch.randint(3, V, mask.shape, generator=torch.Generator().manual_seed(seed))
    return ids.where(mask, PAD), mask.long()


def models(config, head, seed, pads, T, right):
    ours, theirs = twins(config, seed, head)
    T += max(pads)
    ids, mask = texts_of(pads, T, seed, right)
    given = {"input_ids": ids, "attention_mask": mask}
    if config["rope_scaling"] == DYNAMIC:  # theirs would count the padding as length
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if head == "ForCausalLM" or (head == "ForTokenClassification" and config["num_labels"] > 1):
        top = V if head == "ForCausalLM" else config["num_labels"]
        counted = (mask.cumsum(-1) > 1) & mask.bool()  # none is told by padding
        given["labels"] = (ids % top).where(counted, -100)
    elif head == "ForSequenceClassification":
        kind = torch.float if config["num_labels"] == 1 else torch.long
        given["labels"] = (ids[:, 0] % config["num_labels"]).to(kind)
    elif head == "ForQuestionAnswering" and max(pads) == 0:  # the loss is over padding too
        given |= {"start_positions": ids[:, 0] % (T + 2), "end_positions": ids[:, -1] % T}
    a, b = ours(**given), theirs(**given)
    real = mask.bool()
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if (x := a.get(name)) is not None:
            y = b[name]
            close(*((x, y) if head == "ForSequenceClassification" else (x[real], y[real])))
    if a.get("loss") is not None and a.loss.isfinite():
        close(a.loss, b.loss)
        a.loss.backward(), b.loss.backward()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert name and (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                close(p.grad, q.grad, 1e-3)


@torch.no_grad()
def caches(config, seed, pads, chunks, static, counted, turn):
    """A text read in parts, once cut back and its rows in another order: as read at once."""
    ours, theirs = twins(config, seed)
    W, start = config["sliding_window"], 0
    chunks = [max(1, W + size if near else size) for size, near in chunks]
    chunks[0] += max(pads)
    ids, mask = texts_of(pads, sum(chunks), seed)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    kind = qwen2_edu.StaticCache if static else qwen2_edu.DynamicCache
    cache = kind(ours.config, *[sum(chunks)] * static)
    for number, size in enumerate(chunks):
        end = start + size
        told = [{"position_ids": places[:, i:end]} if counted else {} for i in (start, 0)]
        told[0] |= {"attention_mask": mask[:, :end], "past_key_values": cache}
        got = ours(ids[:, start:end], **told[0]).logits
        whole = theirs(ids[:, :end], mask[:, :end], use_cache=False, **told[1]).logits
        real, start = mask[:, start:end].bool(), end
        close(got[real], whole[:, -size:][real])
        if number == turn:
            order = torch.arange(len(ids)).flip(0)
            cache.reorder(order)
            ids, mask, places = ids[order], mask[order], places[order]
            if end <= W or not config["use_sliding_window"]:
                cache.crop(start := end - size // 2)
                ids = torch.cat((ids[:, :start], (ids[:, start:] + 1) % V), 1)  # another way on


def changes(before, after, order):
    """A config whose fields are set one after another is one that was given them."""
    config, wanted = (qwen2_edu.Qwen2Config(**fields) for fields in (before, after))
    for name in [*order, "layer_types"]:  # last, as others make it void
        setattr(config, name, after[name])
    assert config == wanted and config.attn_implementation == wanted.attn_implementation
    model = qwen2_edu.Qwen2ForCausalLM(config)
    assert model.load_state_dict(qwen2_edu.Qwen2ForCausalLM(wanted).state_dict())


# -- generation ------------------------------------------------------------------------------------


@st.composite
def ways(draw):
    options = {"max_new_tokens": draw(st.integers(1, 12))}
    kind = draw(st.sampled_from(["greedy", "sampled", "beams", "sampled beams"]))
    if "sampled" in kind:
        options |= {"do_sample": True, "num_return_sequences": draw(st.integers(1, 3))}
        options["temperature"] = draw(st.sampled_from([1.0, 0.5, 2.0]))
        options["top_k"] = draw(st.sampled_from([0, 1, 5, 50]))
        options["top_p"] = draw(st.sampled_from([1.0, 0.5, 0.9]))
        options["min_p"] = draw(st.sampled_from([0.0, 0.1]))
    if "beams" in kind:
        options["num_beams"] = draw(st.integers(2, 4))
        options["num_return_sequences"] = draw(st.integers(1, options["num_beams"]))
        options["length_penalty"] = draw(st.sampled_from([1.0, 0.0, -1.0, 2.0]))
        options["early_stopping"] = draw(st.sampled_from([False, True, "never"]))
    ids = st.integers(0, V - 1)
    more = {
        "eos_token_id": st.lists(ids, min_size=1, max_size=12, unique=True),
        "repetition_penalty": st.sampled_from([1.3, 0.7]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.lists(st.lists(ids, min_size=1, max_size=2), min_size=1, max_size=4),
        "min_new_tokens": st.integers(1, 5),
        "use_cache": st.just(False),
        "cache_implementation": st.just("static"),
    }
    for name in draw(st.lists(st.sampled_from(sorted(more)), max_size=4, unique=True)):
        options[name] = draw(more[name])
    if "use_cache" in options:
        options.pop("cache_implementation", None)
    return options


def generation(config, seed, pads, T, options):
    if config["sliding_window"] == 1:  # theirs keeps the last 0 keys, keys[-0:], which is all
        config["sliding_window"] = 2
    ours, theirs = twins(config, seed)
    ids, mask = texts_of(pads, T + max(pads), seed)
    asked = {"return_dict_in_generate": True, "output_scores": True, "attention_mask": mask}
    answers = []
    for model in (theirs, ours):
        told = dict(options)
        if model is theirs:  # theirs need not be static, and would be compiled
            told.pop("cache_implementation", None)
        torch.manual_seed(seed)
        answers.append(model.generate(ids, **asked, **told))
    wanted, got = answers
    if wanted.sequences.tolist() == got.sequences.tolist():
        return
    if "num_beams" in options:  # two beams may be equally good, to rounding
        there = got.sequences_scores.isfinite()  # theirs fills up with what has no probability
        assert (wanted.sequences_scores[~there] < -1e8).all()
        return close(got.sequences_scores[there], wanted.sequences_scores[there])
    said = [answer.sequences[:, ids.shape[1] :].T for answer in answers]  # (new, B)
    differ = [x != y for x, y in zip(*said, strict=False)]
    first = next((i for i, rows in enumerate(differ) if rows.any()), 0)
    gap = wanted.scores[first][differ[first]].topk(2).values.diff()
    assert not options.get("do_sample") and (gap > -1e-4).all(), [x.T.tolist() for x in said]


# -- text ------------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CODE = """def f(x):\n\treturn x  # ok\n\n
    for i in range(10): print(i) == != += 'it's' "DON'T" we'll 1234567890 0x1F 3.14e-10 \r\n \r\r
<tool_call> </think> <|im_ <|endoftext| <|im_start|>system\n {{ x }} {% y %}""".split(" ")
MARKS = (
    "eao \u0301\u0323\u0307\u0308가\u1100\u1161\u11a8\u212b\u0958생\u0f71\u0f72\u200d🏽👩🇩ﬁ\u3099か"
)
pieces = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.text(st.sampled_from(MARKS), max_size=12),
    st.text(st.sampled_from(" \t\n\r\u00a0\u3000\u2028aA1'.\u0085"), max_size=12),
    st.sampled_from(SPECIAL),
    st.lists(st.sampled_from(CODE), max_size=6).map(" ".join),
)
texts = st.lists(pieces, max_size=5).map("".join)


@cache
def tokenizers():
    """Theirs, then both of ours, with the released vocabulary."""
    folder = tempfile.mkdtemp()
    ours = [kind.from_pretrained("qwen2") for kind in (Qwen2Tokenizer, Qwen2TokenizerFast)]
    ours[0].save_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    return theirs, *ours


def reading(rows, options, skip, numbers):
    """Batches to ids, with offsets, and ids to text."""
    theirs, *both = tokenizers()
    wanted = theirs(rows, return_offsets_mapping=True, **options)
    for ours in both:
        got = ours(rows, return_offsets_mapping=True, **options)
        assert got.input_ids == wanted.input_ids and got.attention_mask == wanted.attention_mask
        for text, mine, other in zip(rows, got.offset_mapping, wanted.offset_mapping, strict=True):
            if unicodedata.is_normalized("NFC", text):
                assert mine == other
            for (a, b), (c, d) in zip(mine, other, strict=True):  # NFC fuses: theirs has the first
                assert a <= c and d <= b
        for ids in (*got.input_ids, numbers):
            text = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == text
            stream = ours.stream_decoder(skip)
            assert "".join([*map(stream.push, ids), stream.flush()]) == text
        for text in rows:
            assert ours.decode(ours.encode(text)) == unicodedata.normalize("NFC", text)


TEMPLATES = {
    "2": QWEN2_TEMPLATE,
    "2.5": QWEN2_5_TEMPLATE,
    "thinks": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if '</think>' in m.content and not loop.last %}{{ m.content.split('</think>')[-1]|trim }}"
    "{% else %}{{ m.content | trim }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "joins": "{{ bos_token }}{% for m in messages %}{{ ['<|im_start|>', m.role, '\\n', m.content] "
    "| join }}{{ '<|im_end|>' ~ '\n' }}{% endfor %}",
    "nested": "{% macro turn(m) %}<|im_start|>{{ m.role }}\n{{ m.content[:9] }}{{ m.content[9:] }}"
    "<|im_end|>{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
}
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}},
    texts,
    st.dictionaries(texts, plain_data, max_size=2),
)


@st.composite
def conversations(draw):
    messages = []
    for role in draw(
        st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=5)
    ):
        messages.append({"role": role, "content": draw(texts)})
        if role == "assistant" and draw(st.booleans()):
            messages[-1]["tool_calls"] = draw(st.lists(calls, min_size=1, max_size=2))
    if draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(texts)})
    return messages


def chats(template, messages, tools, prompt):
    """The text of a conversation, its ids, and that no content makes a control token."""
    theirs, *both = tokenizers()
    given = {"chat_template": TEMPLATES[template], "add_generation_prompt": prompt}
    if template == "2.5" and tools:
        given["tools"] = tools
    wanted = theirs.apply_chat_template(messages, tokenize=False, **given)
    typed = json.dumps([messages, tools], ensure_ascii=False)
    controls = set(theirs.all_special_ids)
    tame = [{"role": m["role"], "content": "x"} for m in messages]
    for ours in both:
        assert ours.apply_chat_template(messages, tokenize=False, **given) == wanted
        ids = ours.apply_chat_template(messages, **given).input_ids
        assert ours.decode(ids) == unicodedata.normalize("NFC", wanted)
        if not any(token in typed for token in SPECIAL):
            assert ids == theirs(wanted).input_ids
        if template != "2.5":  # there, results in a row share a turn, and tools are told
            few = theirs.apply_chat_template(tame, **given).input_ids
            assert [i for i in ids if i in controls] == [i for i in few if i in controls]


# -- files -----------------------------------------------------------------------------------------


def folders(config, seed, head, shard, added):
    """What we save opens there, what they save opens here, and computes the same."""
    ours, theirs = twins(config, seed, head)
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        ours.save_pretrained(a, max_shard_size=shard)
        theirs.save_pretrained(b)
        ids = torch.arange(3, 12)[None]
        with torch.no_grad():
            for folder in (a, b):
                mine = getattr(qwen2_edu, f"Qwen2{head}").from_pretrained(folder)
                other = getattr(transformers, f"Qwen2{head}").from_pretrained(folder)
                for model in (mine, other):
                    for name, weight in ours.state_dict().items():
                        assert torch.equal(model.state_dict()[name], weight), name
                close(mine(ids)[0], other(ids)[0])
        tokenizer = Qwen2Tokenizer({bytes([i]): i for i in range(256)}, added_tokens=SPECIAL)
        tokenizer.add_tokens([token for token in added if token])
        tokenizer.save_pretrained(a)
        other, text = transformers.AutoTokenizer.from_pretrained(a), " ".join(["a", *added, "b"])
        again = Qwen2TokenizerFast.from_pretrained(a)
        assert tokenizer.encode(text) == again.encode(text) == other.encode(text)
        other.save_pretrained(b)
        assert Qwen2Tokenizer.from_pretrained(b).encode(text) == other.encode(text)


@cache
def whole_folder():
    """A small checkpoint with all that may stand beside it."""
    folder = Path(tempfile.mkdtemp())
    fields = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 300}
    config = qwen2_edu.Qwen2Config(**fields, num_attention_heads=2, id2label={0: "a", 1: "b"})
    model = qwen2_edu.Qwen2ForCausalLM(config)
    model.generation_config = qwen2_edu.GenerationConfig(top_k=5, eos_token_id=[1, 2])
    model.save_pretrained(folder, max_shard_size="8KB")
    tokenizer = Qwen2Tokenizer({bytes([i]): i for i in range(256)}, added_tokens=SPECIAL)
    tokenizer.chat_template = QWEN2_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "auto", "qwen2", "<|im_end|>", "model.safetensors", "../x", 10**400])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "id", "type", "0", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FILES = """config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json
merges.txt model.safetensors.index.json chat_template.jinja special_tokens_map.json
added_tokens.json chat_template.json""".split()
LOADS = [
    qwen2_edu.Qwen2ForCausalLM,
    qwen2_edu.Qwen2ForTokenClassification,
    Qwen2Tokenizer,
    Qwen2TokenizerFast,
    qwen2_edu.GenerationConfig,
    qwen2_edu.Qwen2Config,
]


def damage(name, way, at, value, noise, load):
    """A file with other contents is read, or refused in one of our ways."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(whole_folder(), folder, dirs_exist_ok=True)
        if name in ("vocab.json", "merges.txt"):  # which are read if this is not there
            (Path(folder) / "tokenizer.json").unlink()
        path = Path(folder) / name
        data = path.read_bytes() if path.is_file() else b'{"a": [1]}'
        if way == "bytes" or not name.endswith(".json"):
            i = at[0] % (len(data) + 1)
            path.write_bytes(data[:i] + noise + data[i + at[1] % 9 :])
        else:
            tree = json.loads(data)
            tree = value if way == "whole" else _replaced(tree, at, value, way)
            path.write_text(json.dumps(tree), encoding="utf-8")
        try:
            LOADS[load].from_pretrained(folder)
        except (ValueError, OSError) as error:
            assert str(error), "it does not say what is wrong"


def _replaced(tree, at, value, way):
    """`tree` with what stands at a path exchanged, removed, or joined by something else."""
    here, *rest = at
    if not tree or not isinstance(tree, (dict, list)):
        return value
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = keys[here % len(keys)]
    if rest and isinstance(tree[key], (dict, list)):
        tree[key] = _replaced(tree[key], rest, value, way)
    elif way == "remove":
        del tree[key]
    else:
        tree[key] = value
    return tree


def case(**parts):
    return st.fixed_dictionaries(parts)


pads = st.lists(st.integers(0, 9), min_size=1, max_size=3)
sizes = st.tuples(st.integers(-1, 3), st.booleans())
FAMILIES = {
    "models": (
        case(
            config=configs((*ROPES, DYNAMIC)),
            head=st.sampled_from(HEADS),
            seed=seeds,
            pads=pads,
            T=st.integers(1, 20) | st.just(80),
            right=st.booleans(),
        ),
        models,
    ),
    "caches": (
        case(
            config=configs(),
            seed=seeds,
            pads=pads,
            chunks=st.lists(sizes, min_size=1, max_size=7),
            static=st.booleans(),
            counted=st.booleans(),
            turn=st.integers(0, 6),
        ),
        caches,
    ),
    "changes": (
        case(
            before=configs(),
            after=configs(),
            order=st.permutations(FIELDS),
        ),
        changes,
    ),
    "generation": (
        case(config=configs(), seed=seeds, pads=pads, T=st.integers(1, 12), options=ways()),
        generation,
    ),
    "reading": (
        case(
            rows=st.lists(texts, min_size=1, max_size=3),
            options=case(
                padding=st.sampled_from([False, True, "max_length"]),
                truncation=st.booleans(),
                max_length=st.integers(0, 20),
                padding_side=st.sampled_from(["left", "right"]),
                split_special_tokens=st.booleans(),
            ),
            skip=st.booleans(),
            numbers=st.lists(st.integers(0, 151_700), max_size=12),
        ),
        reading,
    ),
    "chats": (
        case(
            template=st.sampled_from(sorted(TEMPLATES)),
            messages=conversations(),
            tools=st.lists(st.dictionaries(texts, plain_data, max_size=3), max_size=2),
            prompt=st.booleans(),
        ),
        chats,
    ),
    "folders": (
        case(
            config=configs(),
            seed=seeds,
            head=st.sampled_from(HEADS),
            shard=st.sampled_from(["1KB", "3KB", "5GB"]),
            added=st.lists(pieces, max_size=3),
        ),
        folders,
    ),
    "damage": (
        case(
            name=st.sampled_from(FILES),
            way=st.sampled_from(["bytes", "whole", "replace", "remove"]),
            at=st.lists(st.integers(0, 10_000), min_size=2, max_size=5),
            value=anything,
            noise=st.binary(max_size=6),
            load=st.integers(0, len(LOADS) - 1),
        ),
        damage,
    ),
}
