"""GGUF: blocks against the `gguf` package, small files of its writer, and files that lie.

Whether llama.cpp and transformers read what we write is in tests/parity/test_gguf_parity.py; the
released file has a lane of its own, tests/released.
"""

from __future__ import annotations

import resource
import struct

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from qwen2_edu import Qwen2Config, Qwen2ForCausalLM, Qwen2Model, Qwen2Tokenizer
from qwen2_edu.files import gguf as gguf_module
from qwen2_edu.files.blocks import FORMATS
from qwen2_edu.files.gguf import GGUFFile, parameter_name
from qwen2_edu.files.gguf_model import (
    FLOATS,
    NEEDED,
    config_fields,
    save_gguf,
    tokenizer_settings,
)
from qwen2_edu.text.runs import AddedToken

NAMED = {form.name: (kind, form) for kind, form in FORMATS.items()}


def random_blocks(name: str, count: int, seed: int = 0) -> torch.Tensor:
    """Blocks of random bits, uint8 (count, bytes); all scales finite, as in a file."""
    _, form = NAMED[name]
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (count, form.bytes), dtype=torch.uint8, generator=generator)
    if name in ("F32", "BF16", "F16"):
        blocks[:, -1] &= 0xBB  # clears a bit of the exponent: neither inf nor nan
    else:
        for upper in {"Q6_K": [209], "Q8_0": [1], "Q4_0": [1], "Q5_0": [1]}.get(name, [1, 3]):
            blocks[:, upper] &= 0xBB
    return blocks


# -- blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_blocks_are_unpacked_bit_for_bit(name):
    kind, form = NAMED[name]
    blocks = random_blocks(name, 4096)
    ours = form.unpack(blocks)
    theirs = dequantize(blocks.numpy(), GGMLQuantizationType(kind)).reshape(4096, form.numbers)
    assert ours.dtype == torch.float32 and np.isfinite(theirs).all()
    assert np.array_equal(ours.numpy().view(np.int32), theirs.view(np.int32))


def test_sizes_of_blocks_are_those_of_ggml():
    for kind, form in FORMATS.items():
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(kind)] == (form.numbers, form.bytes)
        assert GGMLQuantizationType(kind).name == form.name


def test_a_block_by_hand():
    """d = 0.5; the numbers -16, -15 … 15 of Q5_0: low nibbles first, fifth bits apart."""
    q = list(range(32))  # stored as 0 … 31
    fifth = sum((n >> 4) << i for i, n in enumerate(q)).to_bytes(4, "little")
    packed = bytes((q[i] & 15) | (q[i + 16] & 15) << 4 for i in range(16))
    block = np.frombuffer(np.float16(0.5).tobytes() + fifth + packed, np.uint8)
    unpacked = NAMED["Q5_0"][1].unpack(torch.tensor(block)[None])
    assert unpacked[0].tolist() == [(n - 16) * 0.5 for n in q]


# -- small files of the gguf package's writer ------------------------------------------------------

E, F, V, LAYERS = 256, 512, 300, 2  # 256, so that every format divides a row


@pytest.fixture(scope="module")
def mini():
    """A tokenizer of all bytes, two merges, one control token and one that is none."""
    vocab = {bytes([i]): i for i in range(256)} | {b"th": 256, b"the": 257}
    added = {258: AddedToken("<|endoftext|>", special=True), 259: AddedToken("<tool_call>")}
    merges = [(b"t", b"h"), (b"th", b"e")]
    parts = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return Qwen2Tokenizer(vocab, merges, added_tokens=added, chat_template=template, **parts)


def write(path, mini, formats=("F32",), change=None, extra=None, tied=False):
    """A file by `GGUFWriter` alone. Matrices take the formats in turn, their bits are random.

    change: {field: value to write instead; None = leave it out}. extra: writes more.
    """
    fields = {
        "qwen2.context_length": 64,
        "qwen2.embedding_length": E,
        "qwen2.block_count": LAYERS,
        "qwen2.feed_forward_length": F,
        "qwen2.attention.head_count": 8,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.freq_base": 5e5,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [
            token or f"[PAD{i}]" for i, token in enumerate(mini.convert_ids_to_tokens(range(V)))
        ],
        "tokenizer.ggml.token_type": [1] * 258 + [3, 4] + [5] * (V - 260),
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.padding_token_id": 258,
        "tokenizer.chat_template": mini.chat_template,
        **(change or {}),
    }
    architecture = fields.pop("general.architecture", "qwen2")
    writer = GGUFWriter(path, architecture)
    add = {str: writer.add_string, list: writer.add_array, bool: writer.add_bool}
    add |= {int: writer.add_uint32, float: writer.add_float32}
    for name, value in fields.items():
        if value is not None:
            add[type(value)](name, value)
    matrices = {"token_embd.weight": (V, E), "output.weight": (V, E)}
    vectors = {"output_norm.weight": E}
    for i in range(LAYERS):
        inside = {"attn_q": (E, E), "attn_k": (64, E), "attn_v": (64, E), "attn_output": (E, E)}
        inside |= {"ffn_gate": (F, E), "ffn_up": (F, E), "ffn_down": (E, F)}
        matrices |= {f"blk.{i}.{name}.weight": shape for name, shape in inside.items()}
        small = {"attn_norm.weight": E, "ffn_norm.weight": E, "attn_q.bias": E}
        vectors |= {
            f"blk.{i}.{x}": n for x, n in (small | {"attn_k.bias": 64, "attn_v.bias": 64}).items()
        }
    if tied:
        del matrices["output.weight"]
    for seed, (name, (rows, width)) in enumerate(matrices.items()):
        kind, form = NAMED[formats[seed % len(formats)]]
        blocks = random_blocks(form.name, rows * width // form.numbers, seed)
        data = blocks.view(rows, -1).numpy()
        if form.name in ("F32", "F16"):
            data = data.view({"F32": np.float32, "F16": np.float16}[form.name])
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType(kind))
    for seed, (name, width) in enumerate(vectors.items()):
        generator = torch.Generator().manual_seed(seed)
        writer.add_tensor(name, torch.randn(width, generator=generator).numpy())
    if extra:
        extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def every_format(tmp_path_factory, mini):
    return write(tmp_path_factory.mktemp("gguf") / "every.gguf", mini, list(NAMED))


def load(path) -> Qwen2ForCausalLM:
    """The model of a file, as `from_pretrained` has to assemble it."""
    file = GGUFFile(path)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config.from_dict(config_fields(file)))
    tied = model.config.tie_word_embeddings
    model.load_state_dict(file.read_all(), strict=not tied, assign=True)
    model.tie_weights()
    return model.eval()


def test_every_tensor_of_every_format(every_format, monkeypatch):
    monkeypatch.setattr(gguf_module, "CHUNK", 1 << 12)  # so that a tensor takes several pieces
    file, reader = GGUFFile(every_format), gguf.GGUFReader(every_format)
    found = file.read_all()
    assert {file.tensors[name].format.name for name in found} == set(NAMED)
    assert len(found) == len(reader.tensors) == 3 + LAYERS * 12
    for tensor in reader.tensors:
        theirs = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist())
        ours = found[parameter_name(tensor.name)]
        assert ours.shape == theirs.shape
        assert np.array_equal(ours.numpy().view(np.int32), theirs.view(np.int32)), tensor.name


def test_reading_gives_the_threads_back(every_format):
    before, file = torch.get_num_threads(), GGUFFile(every_format)
    torch.set_num_threads(before + 1)
    try:
        file.read_all(["model.norm.weight"])
        with pytest.raises(KeyError):
            file.read_all(["model.nothing.weight"])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_from_fp32(every_format, dtype):
    file = GGUFFile(every_format)
    for name in ("lm_head.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        assert torch.equal(file.read(name, dtype), file.read(name).to(dtype))


def test_metadata_is_that_of_the_other_reader(every_format):
    file, reader = GGUFFile(every_format), gguf.GGUFReader(every_format)
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert file.metadata.keys() == theirs.keys()
    for name, value in theirs.items():
        same = (
            np.float32(file.metadata[name]) == np.float32(value)
            if isinstance(value, float)
            else None
        )
        assert same or file.metadata[name] == value, name


@pytest.mark.parametrize(
    ("add", "value"),
    [
        ("add_uint8", 200),
        ("add_int8", -100),
        ("add_uint16", 60000),
        ("add_int16", -30000),
        ("add_int32", -(2**31)),
        ("add_uint64", 2**63),
        ("add_int64", -(2**63)),
        ("add_float64", 0.1),
        ("add_float32", 0.5),
        ("add_bool", True),
        ("add_string", "größer 你好"),
        ("add_array", [1.5, 2.5]),
        ("add_array", [True, False]),
    ],
)
def test_every_kind_of_metadata(tmp_path, mini, add, value):
    path = write(tmp_path / "m", mini, extra=lambda w: getattr(w, add)("general.something", value))
    found = GGUFFile(path).metadata["general.something"]
    assert found == value and type(found) is type(value)


def test_names_go_both_ways():
    config = Qwen2Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=12,
        num_attention_heads=2,
    )
    with torch.device("meta"):
        names = list(Qwen2ForCausalLM(config).state_dict())
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 12)
    for name in names:
        assert parameter_name(table.get_name(name, (".weight", ".bias"))) == name
    for strange in (
        "blk.01.attn_q.weight",
        "blk.1.attn_output.bias",
        "rope_freqs.weight",
        "output",
    ):
        assert parameter_name(strange) is None


def test_config(tmp_path, mini):
    expected = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": V,
        "hidden_size": E,
        "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rope_theta": 5e5,
        "rms_norm_eps": 1e-6,  # written as 9.999999974752427e-07
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 258,
        "pad_token_id": 258,
        "torch_dtype": "float32",
    }
    assert config_fields(GGUFFile(write(tmp_path / "a", mini))) == expected
    tied = config_fields(GGUFFile(write(tmp_path / "b", mini, ["F16"], tied=True)))
    assert tied == expected | {"tie_word_embeddings": True, "torch_dtype": "float16"}
    stated = {"qwen2.attention.key_length": 32, "qwen2.rope.dimension_count": 32}
    stated |= {"qwen2.vocab_size": V, "qwen2.rope.scaling.type": "none"}
    found = config_fields(GGUFFile(write(tmp_path / "c", mini, ["BF16"], stated)))
    assert found == expected | {"head_dim": 32, "torch_dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("stated", "scaling"),
    [
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 16, "finetuned": True},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ),
    ],
)
def test_stretched_positions(tmp_path, mini, stated, scaling):
    change = {f"qwen2.rope.scaling.{name}": value for name, value in stated.items()}
    fields = config_fields(GGUFFile(write(tmp_path / "m", mini, change=change)))
    assert fields["rope_scaling"] == scaling
    assert Qwen2Config.from_dict(fields).rope_parameters == scaling | {"rope_theta": 5e5}


def test_tokenizer(every_format, mini):
    settings = tokenizer_settings(GGUFFile(every_format))
    assert settings["vocab"] == mini.vocab and settings["merges"] == mini.merges
    assert settings["added_tokens"] == {
        258: AddedToken("<|endoftext|>", special=True, normalized=False),
        259: AddedToken("<tool_call>", special=False, normalized=False),
    }
    assert settings["chat_template"] == mini.chat_template
    assert (settings["eos_token"], settings["pad_token"]) == ("<|endoftext|>", "<|endoftext|>")
    assert "bos_token" not in settings and settings["model_max_length"] == 64
    tokenizer = Qwen2Tokenizer(**settings)
    ids = tokenizer("the <tool_call> café<|endoftext|>").input_ids
    assert ids == [257, *b" ", 259, *" café".encode(), 258]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the <tool_call> café"


# -- refusals --------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


def tensor(name="token_embd.weight", dims=(32, 2), kind=0, offset=0, n_dims=None) -> bytes:
    n = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", n, *dims, kind, offset)


QWEN2 = entry("general.architecture", 8, text("qwen2"))


def container(fields=(QWEN2,), tensors=(), data=b"", version=3, counts=None) -> bytes:
    """A GGUF file put together by hand, so that it can lie."""
    n_tensors, n_fields = counts or (len(tensors), len(fields))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields)
    head += b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


GOOD = container(tensors=[tensor()], data=bytes(256))
TWO = [tensor(), tensor("output.weight", offset=256)]

LIES = {
    "empty": (b"", "does not begin with 'GGUF'"),
    "zip": (b"PK\x03\x04" + bytes(100), "does not begin with 'GGUF'"),
    "magic alone": (b"GGUF", "the header goes on beyond the end"),
    "old version": (container(version=1), "is of version 1: we read GGUF 2 and 3"),
    "new version": (container(version=99), "of version 99"),
    "big-endian": (container(version=3 << 24), "is big-endian"),
    "fields": (container(counts=(0, 2**63)), "the header has 9,223,372,036,854,775,808 entries"),
    "tensors": (container(counts=(2**40, 1)), "the header has 1,099,511,627,776 entries"),
    "more fields": (container(counts=(0, 60000)), "metadata field '' is there twice"),
    "more tensors": (container(counts=(60000, 1)), "holds tensor '', which no Qwen2 has"),
    "long name": (
        container([struct.pack("<Q", 2**63)]),
        "the name of a metadata field goes on beyond the end",
    ),
    "long text": (
        container([entry("general.architecture", 8, struct.pack("<Q", 2**62))]),
        "metadata field 'general.architecture' goes on beyond the end",
    ),
    "long list": (
        container([QWEN2, entry("x", 9, struct.pack("<IQ", 0, 2**50))]),
        "metadata field 'x' has 1,125,899,906,842,624 entries",
    ),
    "list longer than the file": (
        container([QWEN2, entry("x", 9, struct.pack("<IQ", 12, 2**24))]),
        "metadata field 'x' goes on beyond the end",
    ),
    "list of lists": (
        container([QWEN2, entry("x", 9, struct.pack("<IQ", 9, 1) + bytes(12))]),
        "metadata field 'x' is of the unknown kind 9",
    ),
    "kind": (container([QWEN2, entry("x", 77, b"")]), "field 'x' is of the unknown kind 77"),
    "twice": (container([QWEN2, QWEN2]), "field 'general.architecture' is there twice"),
    "no UTF-8": (
        container([entry("general.architecture", 8, struct.pack("<Q", 2) + b"\xff\xfe")]),
        "metadata field 'general.architecture' is not UTF-8",
    ),
    "architecture": (
        container([entry("general.architecture", 8, text("llama"))]),
        "holds a 'llama' model, and we read 'qwen2'",
    ),
    "no architecture": (container([]), "lacks the metadata field general.architecture"),
    "architecture as a number": (
        container([entry("general.architecture", 4, bytes(4))]),
        "general.architecture says '0', which is no str",
    ),
    "a part": (
        container([QWEN2, entry("split.count", 4, struct.pack("<I", 3))]),
        "is a part of a model",
    ),
    "alignment": (
        container([QWEN2, entry("general.alignment", 4, struct.pack("<I", 24))]),
        "general.alignment is 24, which is no power of two",
    ),
    "no alignment": (
        container([QWEN2, entry("general.alignment", 4, bytes(4))]),
        "general.alignment is 0",
    ),
    "name": (
        container(tensors=[tensor("rope_freqs.weight")]),
        "holds tensor 'rope_freqs.weight', which no Qwen2",
    ),
    "format": (
        container(tensors=[tensor(kind=16)], data=bytes(999)),
        "tensor 'token_embd.weight' is in format IQ2_XXS, and we read F32, F16, Q4_0",
    ),
    "unheard-of format": (container(tensors=[tensor(kind=999)]), "is in format 999, and we read"),
    "row": (
        container(tensors=[tensor(dims=(33, 2), kind=8)], data=bytes(999)),
        r"cannot have shape \(2, 33\) in Q8_0",
    ),
    "no rows": (container(tensors=[tensor(dims=(32, 0))]), r"cannot have shape \(0, 32\)"),
    "no dimensions": (container(tensors=[tensor(dims=())]), r"cannot have shape \(\) in F32"),
    "dimensions": (container(tensors=[tensor(n_dims=2**31)]), "has 2,147,483,648 entries"),
    "huge": (container(tensors=[tensor(dims=(2**62, 2**62))], data=bytes(256)), "cannot lie"),
    "far": (container(tensors=[tensor(offset=2**62)], data=bytes(256)), "cannot lie in bytes"),
    "over the end": (
        container(tensors=TWO, data=bytes(511)),
        "output.*lm_head|lm_head.* cannot lie",
    ),
    "unaligned": (
        container(tensors=[TWO[0], tensor("output.weight", offset=257)], data=bytes(999)),
        "lm_head.weight cannot lie",
    ),
    "overlap": (
        container(tensors=[TWO[0], tensor("output.weight", offset=224)], data=bytes(999)),
        "lm_head.weight cannot lie",
    ),
    "same name": (
        container(tensors=[TWO[0], tensor(offset=256)], data=bytes(999)),
        "model.embed_tokens.weight cannot lie.*there twice",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(tmp_path, lie):
    data, message = LIES[lie]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # 64 MB, in KB


def test_the_honest_twin_of_those_opens(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)
    assert GGUFFile(path).read("model.embed_tokens.weight").shape == (2, 32)
    path.write_bytes(container(tensors=TWO, data=bytes(512)))
    assert len(GGUFFile(path).tensors) == 2
    with pytest.raises(FileNotFoundError, match="nowhere"):
        GGUFFile(tmp_path / "nowhere.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path, every_format):
    whole = every_format.read_bytes()
    start = min(stored.start for stored in GGUFFile(every_format).tensors.values())
    path = tmp_path / "cut.gguf"
    for size in [*range(0, start, 97), *range(start, len(whole), 50021), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.gguf"):
            GGUFFile(path)


def test_a_file_cut_after_it_was_opened(tmp_path, every_format):
    path = tmp_path / "cut.gguf"
    path.write_bytes(every_format.read_bytes())
    file = GGUFFile(path)
    path.write_bytes(path.read_bytes()[:-999])
    with pytest.raises(ValueError, match="has become shorter"):
        file.read_all()
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="greater than file size"):
        file.blocks("model.embed_tokens.weight")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"cut\.gguf"):
        file.blocks("model.embed_tokens.weight")


def test_any_damage_to_the_header_is_a_value_error_or_nothing(tmp_path, mini):
    """2,000 damaged bytes: each file opens, or is refused by a ValueError that names it."""
    whole = bytearray(write(tmp_path / "sound.gguf", mini).read_bytes())
    start = min(s.start for s in GGUFFile(tmp_path / "sound.gguf").tensors.values())
    generator = np.random.default_rng(0)
    path, refused = tmp_path / "damaged.gguf", 0
    for _ in range(2000):
        damaged, at = bytearray(whole[: start + 64]), int(generator.integers(start))
        damaged[at] ^= 1 << int(generator.integers(8))
        with open(path, "wb") as file:
            file.write(damaged)
            file.truncate(len(whole))  # zeros for the numbers
        try:
            opened = GGUFFile(path)
            config_fields(opened)
            tokenizer_settings(opened)
        except ValueError as error:
            assert "damaged.gguf" in str(error)
            refused += 1
    assert 500 < refused < 2000  # many a flipped bit only makes another name or number


def test_config_without_an_embedding(tmp_path):
    fields = [QWEN2]
    for name in NEEDED:
        kind, value = (6, struct.pack("<f", 1.0)) if name in FLOATS else (4, struct.pack("<I", 1))
        fields.append(entry(f"qwen2.{name}", kind, value))
    path = tmp_path / "model.gguf"
    path.write_bytes(container(fields, [tensor("blk.0.attn_norm.weight")], bytes(256)))
    with pytest.raises(ValueError, match="1 layers are there, without an embedding"):
        config_fields(GGUFFile(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qwen2.block_count": None}, "lacks the metadata field qwen2.block_count"),
        ({"qwen2.block_count": "two"}, "qwen2.block_count says 'two', which is no int"),
        ({"qwen2.block_count": 2.0}, "qwen2.block_count says '2.0', which is no int"),
        ({"qwen2.block_count": True}, "qwen2.block_count says 'True', which is no int"),
        ({"qwen2.block_count": 0}, "qwen2.block_count cannot be 0"),
        (
            {"qwen2.block_count": 10**9},
            "1000000000 layers and an embedding are announced, 2 layers are there",
        ),
        ({"qwen2.block_count": 1}, "1 layers and an embedding are announced, 2 layers are there"),
        ({"qwen2.rope.freq_base": 1000000}, "freq_base says '1000000', which is no float"),
        ({"qwen2.rope.freq_base": -1.0}, "freq_base cannot be -1.0"),
        ({"qwen2.rope.freq_base": float("nan")}, "freq_base cannot be nan"),
        ({"qwen2.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon"),
        ({"qwen2.attention.head_count_kv": [2, 2]}, r"head_count_kv says '\[2, 2\]', which is no"),
        ({"qwen2.vocab_size": V + 1}, f"qwen2.vocab_size is {V + 1}, where vocab_size is {V}"),
        ({"qwen2.rope.dimension_count": 16, "qwen2.attention.key_length": 32}, "head_dim is 32"),
        ({"qwen2.rope.scaling.type": "longrope"}, "scaling.type must be one of.*'longrope'"),
        ({"qwen2.rope.scaling.type": "yarn"}, "lacks the metadata field qwen2.rope.scaling.factor"),
        ({"qwen2.rope.scaling.factor": 4.0}, "qwen2.rope.scaling.factor is not known"),
        ({"qwen2.attention.sliding_window": 9}, "sliding_window is not known, and may matter"),
        ({"qwen2.attention.causal": False}, "attention.causal is not known"),
    ],
)
def test_config_refusals(tmp_path, mini, change, message):
    file = GGUFFile(write(tmp_path / "model.gguf", mini, change=change))
    with pytest.raises(ValueError, match=message) as caught:
        config_fields(file)
    assert "model.gguf" in str(caught.value)


def with_token(i, token):
    return lambda tokens: [*tokens[:i], token, *tokens[i + 1 :]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model", lambda _: "llama", "tokenizer.ggml.model must be one of .*, not 'llama'"),
        ("pre", lambda _: "llama-bpe", "tokenizer.ggml.pre must be one of .*, not 'llama-bpe'"),
        ("pre", lambda _: None, "lacks the metadata field tokenizer.ggml.pre"),
        ("add_bos_token", lambda _: True, "add_bos_token must be one of"),
        ("tokens", lambda _: None, "lacks the metadata field tokenizer.ggml.tokens"),
        ("tokens", lambda _: "a", "tokens says 'a', which is no list"),
        ("tokens", lambda _: [1, 2], "malformed tokenizer"),
        ("tokens", lambda tokens: tokens[:-1], f"there are {V - 1} tokens, {V - 1} different"),
        ("tokens", with_token(5, "th"), f"there are {V} tokens, {V - 1} different"),
        ("tokens", with_token(5, "a b"), "malformed tokenizer"),
        ("token_type", lambda kinds: [2, *kinds[1:]], "of kind 2, which no Qwen2's is"),
        ("token_type", lambda kinds: ["1" for _ in kinds], "of kind 1"),
        ("merges", lambda _: ["t h e"], "malformed tokenizer"),
        ("merges", lambda _: ["th"], "malformed tokenizer"),
        ("merges", lambda _: ["t qq"], "malformed tokenizer.*qq"),
        ("merges", lambda _: [7], "malformed tokenizer"),
        ("eos_token_id", lambda _: V, f"malformed tokenizer: {V}"),
        ("eos_token_id", lambda _: "</s>", "eos_token_id says '</s>', which is no int"),
    ],
)
def test_tokenizer_refusals(tmp_path, mini, name, change, message):
    name = "tokenizer.ggml." + name
    sound = GGUFFile(write(tmp_path / "sound.gguf", mini)).metadata
    file = GGUFFile(write(tmp_path / "m.gguf", mini, change={name: change(sound.get(name))}))
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer_settings(file)
    assert "m.gguf" in str(caught.value)


def test_a_negative_id_is_no_token(tmp_path, mini):
    change = {"tokenizer.ggml.eos_token_id": None}
    add = lambda writer: writer.add_int32("tokenizer.ggml.eos_token_id", -1)  # noqa: E731
    file = GGUFFile(write(tmp_path / "m.gguf", mini, change=change, extra=add))
    with pytest.raises(ValueError, match="malformed tokenizer: -1"):
        tokenizer_settings(file)


# -- saving ----------------------------------------------------------------------------------------


@pytest.fixture
def model(small_config, randomise):
    return randomise(
        Qwen2ForCausalLM(small_config(hidden_size=96, intermediate_size=160, vocab_size=V))
    )


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_read_again(tmp_path, model, mini, small_config, randomise, tied):
    sizes = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": V}
    scaling = {"rope_type": "yarn", "factor": 2.0}
    config = small_config(**sizes, tie_word_embeddings=tied, rope_scaling=scaling)
    model = randomise(Qwen2ForCausalLM(config))
    path = save_gguf(model, mini, tmp_path / "new folder" / "model.gguf")
    assert path.is_file() and [p.name for p in path.parent.iterdir()] == ["model.gguf"]
    again = load(path)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    asked = again.config.to_dict()
    assert asked.pop("rope_scaling") == scaling | {"original_max_position_embeddings": 128}
    changed = {
        "torch_dtype": "float32",
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": None,
    }
    ids = {"eos_token_id": 258, "pad_token_id": 258}  # of the tokenizer
    expected = config.to_dict() | changed | ids
    del expected["rope_scaling"]
    assert asked == expected
    tokenizer = Qwen2Tokenizer(**tokenizer_settings(GGUFFile(path)))
    assert tokenizer.get_vocab() == mini.get_vocab() and tokenizer.merges == mini.merges
    assert tokenizer.added_tokens_decoder == mini.added_tokens_decoder
    assert tokenizer.chat_template == mini.chat_template


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0", "BF16"])
def test_formats_of_a_saved_file(tmp_path, model, mini, dtype):
    reader = gguf.GGUFReader(save_gguf(model, mini, tmp_path / "m.gguf", dtype))
    parameters = dict(model.named_parameters())
    assert len(reader.tensors) == len(parameters)
    name = {"F32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype}")
    assert reader.get_field("general.file_type").contents() == gguf.LlamaFileType[name]
    for tensor in reader.tensors:
        value = parameters[parameter_name(tensor.name)].detach().numpy()
        kind = GGMLQuantizationType[dtype] if value.ndim == 2 else GGMLQuantizationType.F32
        assert tensor.tensor_type == kind
        data = tensor.data.view(np.uint8), quantize(value, kind).view(np.uint8)
        assert np.array_equal(*data), tensor.name


def test_bfloat16_models_are_saved_exactly(tmp_path, model, mini):
    path = save_gguf(model.bfloat16(), mini, tmp_path / "m.gguf")
    for name, value in GGUFFile(path).read_all(dtype=torch.bfloat16).items():
        assert torch.equal(value, model.state_dict()[name])


def test_saving_replaces_or_leaves_the_file(tmp_path, model, mini, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"older")
    with monkeypatch.context() as patch:
        patch.setattr(
            GGUFWriter, "write_tensor_data", lambda *_: (_ for _ in ()).throw(OSError("full"))
        )
        with pytest.raises(OSError, match="full"):
            save_gguf(model, mini, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"] and path.read_bytes() == b"older"
    save_gguf(model, mini, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"] and len(GGUFFile(path).tensors) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
            "from layer 1 on",
        ),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "cannot be told rope_scaling"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}},
            "cannot be told rope_scaling=.*beta_fast",
        ),
        ({"head_dim": 8}, "6 x 8 is not 96"),
        ({"vocab_size": 259}, "1 tokens have ids beyond the model's last, 258"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(tmp_path, mini, small_config, change, message):
    sizes = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": V}
    model = Qwen2ForCausalLM(small_config(**sizes | change))
    with pytest.raises(ValueError, match=message):
        save_gguf(model, mini, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_other_refusals_of_saving(tmp_path, model, mini, small_config):
    with pytest.raises(
        ValueError,
        match=r"dtype must be one of \['F32', .*'Q4_0'\], not 'Q4_K'",
    ):
        save_gguf(model, mini, tmp_path / "m.gguf", "Q4_K")
    with pytest.raises(ValueError, match="a Qwen2Model has no head"):
        save_gguf(Qwen2Model(model.config), mini, tmp_path / "m.gguf")
    odd = Qwen2ForCausalLM(small_config(hidden_size=48, vocab_size=V))
    with pytest.raises(
        ValueError, match="Q8_0 packs 32 numbers of a row, model.embed.* has rows of 48"
    ):
        save_gguf(odd, mini, tmp_path / "m.gguf", "Q8_0")
    mini = Qwen2Tokenizer(mini.vocab, mini.merges, chat_template={"default": "a", "tools": "b"})
    with pytest.raises(ValueError, match="one chat template, not default, tools"):
        save_gguf(model, mini, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
