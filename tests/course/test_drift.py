"""A lesson's export cell is the package's code: same syntax tree, up to docstrings, comments and
annotations. Nothing is generated; this test compares, and people edit.
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib
import inspect
import json
from collections import Counter
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
TAG = "export:"

# By the end of which lesson is each public piece written? Once that lesson exists, exactly one cell
# of one lesson exports the piece. A class that is too long for a cell may be exported by methods.
LESSON_OF = {
    "bpe.token_to_text": "01",
    "bpe.text_to_token": "01",
    "bpe.merge": "01",
    "bpe.merges_of": "01",
    "bpe.ranks_of": "01",
    "bpe.train": "01",
    "layers.RMSNorm": "02",
    "layers.SwiGLU": "07",
    "rope.rope_frequencies": "03",
    "rope.RotaryEmbedding": "03",
    "rope.rotate_half": "03",
    "rope.apply_rope": "03",
    "masks.visible": "06",
    "masks.additive": "06",
    "masks.tokens_of_own_document": "06",
    "masks.LongMask": "06",
    "attention.attention_weights": "05",
    "attention.weighted_values": "05",
    "attention.eager_attention": "04",
    "attention.sdpa_attention": "04",
    "attention.Qwen2Attention": "05",
    "model.Qwen2DecoderLayer": "07",
    "model.ModelOutput": "08",
    "model.CausalLMOutput": "08",
    "model.Qwen2Model": "08",
    "model.Qwen2ForCausalLM": "08",
    "model.next_token_loss": "08",
    "model.mean_loss": "08",
    "outputs.Output": "08",
    "files.blocks.half": "09",
    "files.blocks.nibbles": "09",
    "files.blocks.q8_0": "09",
    "files.blocks.six_bit_scales": "09",
    "files.blocks.q4_k": "09",
    "sampling.seen_tokens": "10",
    "sampling.repetition_penalty": "10",
    "sampling.no_repeated_ngrams": "10",
    "sampling.without": "10",
    "sampling.temperature": "10",
    "sampling.top_k": "10",
    "sampling.top_p": "10",
    "sampling.min_p": "10",
    "sampling.draw": "10",
    "cache.Growing": "11",
    "cache.Fixed": "11",
    "cache.Cache": "11",
    "cache.DynamicCache": "11",
    "cache.StaticCache": "11",
    "chat.render_chatml": "12",
    "packing.chat_documents": "12",
    "heads.ClassifierOutput": "13",
    "heads.SpanOutput": "13",
    "heads.Qwen2ForSequenceClassification": "13",
    "heads.Qwen2ForTokenClassification": "13",
    "heads.Qwen2ForQuestionAnswering": "13",
    "heads.classification_loss": "13",
    "behaviour.to_first_token": "14",
    "behaviour.previous_token": "14",
    "behaviour.entropy": "14",
    "behaviour.reach": "14",
    "behaviour.induction": "14",
    "behaviour.repeated_tokens": "14",
    "quantize.round_int8": "16",
    "quantize.round_int4": "16",
    "quantize.unpack": "16",
    "decoding.speculation.PromptLookup": "16",
}
# Every public piece of these is in the table.
COMPLETE = ("layers", "rope", "masks", "attention", "model", "heads", "cache", "sampling")


# --- reading both sides


def exports(notebook: dict) -> list[tuple[str, str]]:
    """(what is exported, source of the cell) for each export tag."""
    return [
        (tag.removeprefix(TAG), "".join(cell["source"]))
        for cell in notebook["cells"]
        for tag in cell["metadata"].get("tags", [])
        if tag.startswith(TAG)
    ]


class Bare(ast.NodeTransformer):
    """Drops docstrings and annotations. What is a field of a dataclass stays one."""

    FIELD = ast.Constant(...)

    def without_docstring(self, node):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        fields = isinstance(node, ast.ClassDef)
        body = [self.annotated(line, fields) for line in node.body]
        node.body = [line for line in body if line is not None] or [ast.Pass()]
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.without_docstring(node)

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_ClassDef = without_docstring

    def visit_ImportFrom(self, node):  # a lesson stands outside the package
        if node.level:
            node.module, node.level = f"qwen2_edu.{node.module}", 0
        return node

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):  # deeper in a function: in a loop, say
        return node if node.annotation is self.FIELD else self.annotated(node, fields=False)

    def annotated(self, line, fields):
        if not isinstance(line, ast.AnnAssign):
            return line
        if fields:  # `x: Tensor` is a field, whatever the type; `x = 1` is not
            line.annotation = self.FIELD
            return line
        return ast.Assign([line.target], line.value, lineno=line.lineno) if line.value else None


def bare(source: str, path: str) -> str:
    """The definition of `name` or `Class.name`, bare and in one spelling; "" if there is none."""
    body, found = ast.parse(source).body, None
    for name in path.split("."):
        found = [node for node in body if name_of(node) == name]
        if len(found) != 1:
            return ""
        body = getattr(found[0], "body", [])
    return ast.unparse(ast.fix_missing_locations(Bare().visit(copy.deepcopy(found[0]))))


def name_of(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def drift(exported: str, cell: str) -> str:
    """How does the cell differ from the package's object? "" if it does not; else a diff."""
    package, *path = exported.split(".")
    try:
        module = importlib.import_module(package)
        while hasattr(module, "__path__"):  # a folder: the module lies in it
            package, *path = f"{package}.{path[0]}", *path[1:]
            module = importlib.import_module(package)
    except ImportError:
        return f"{exported}: there is no module {package}"
    ours = bare(inspect.getsource(module), ".".join(path))
    theirs = bare(cell, ".".join(path)) or bare(cell, path[-1])
    if not ours or not theirs:
        return f"{exported}: not defined exactly once in the {'cell' if ours else 'package'}"
    lines = difflib.unified_diff(
        ours.splitlines(), theirs.splitlines(), exported, "the lesson's cell", lineterm="", n=2
    )
    return "\n".join(lines)


def missing(exported: list[str], lessons: set[str]) -> list[str]:
    """Which pieces of the table should these lessons export, and do not?"""
    return [
        piece
        for piece, lesson in LESSON_OF.items()
        if lesson in lessons
        and f"qwen2_edu.{piece}" not in exported
        and not (parts(piece) and parts(piece) <= set(exported))
    ]


def parts(piece: str) -> set[str]:
    """The methods of a class, as they would be exported one by one."""
    module, _, name = piece.rpartition(".")
    found = getattr(importlib.import_module(f"qwen2_edu.{module}"), name)
    methods = inspect.getmembers(found, inspect.isfunction) if inspect.isclass(found) else []
    own = [method for method, _ in methods if method in vars(found)]
    return {f"qwen2_edu.{piece}.{method}" for method in own}


def repeated(exported: list[str]) -> list[str]:
    """What is exported more than once: itself twice, or as a whole and in parts."""
    counts = Counter(exported)
    twice = [name for name, count in counts.items() if count > 1]
    return twice + [name for name in counts if name.rpartition(".")[0] in counts]


# --- the lessons as they are

READ = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in NOTEBOOKS}
EXPORTS = [(lesson, *export) for lesson, notebook in READ.items() for export in exports(notebook)]


@pytest.mark.parametrize("lesson, exported, cell", EXPORTS, ids=lambda text: text[:60])
def test_export_cell_is_the_packages_code(lesson, exported, cell):
    differs = drift(exported, cell)
    assert not differs, "\n" + differs


@pytest.mark.parametrize("lesson", READ)
def test_export_cell_defines_what_its_tags_say(lesson):
    cells: dict[str, set[str]] = {}
    for exported, cell in exports(READ[lesson]):
        cells.setdefault(cell, set()).update(exported.split(".")[2:])
    for cell, names in cells.items():
        defined = {node.name for node in ast.parse(cell).body if hasattr(node, "name")}
        assert defined <= names, f"no tag for {sorted(defined - names)}"


def test_nothing_is_exported_twice():
    assert repeated([exported for _, exported, _ in EXPORTS]) == []


def test_every_piece_a_lesson_covers_is_exported():
    assert missing([exported for _, exported, _ in EXPORTS], {name[:2] for name in READ}) == []


@pytest.mark.parametrize("name", COMPLETE)
def test_table_names_every_public_piece(name):
    module = importlib.import_module(f"qwen2_edu.{name}")
    public = {
        f"{name}.{piece}"
        for piece, found in vars(module).items()
        if not piece.startswith("_")
        and (inspect.isclass(found) or inspect.isfunction(found))
        and found.__module__ == module.__name__
    }
    assert public == {piece for piece in LESSON_OF if piece.startswith(f"{name}.")}


# --- and the test itself: what must pass does, and one changed character on either side does not

NORM = '''
class RMSNorm(nn.Module):
    """Another docstring."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))  # another comment
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        mean_square = wide.pow(2).mean(-1, keepdim=True)
        unit = wide * torch.rsqrt(mean_square + self.eps)
        return self.weight * unit.to(x.dtype)

    def extra_repr(self):
        return f"{self.weight.numel()}, eps={self.eps}"
'''
TARGET = "qwen2_edu.layers.RMSNorm"


def test_docstrings_comments_and_annotations_do_not_count():
    assert drift(TARGET, NORM) == ""


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("1e-6", "1e-5"),
        ("+ self.eps", "- self.eps"),
        ("pow(2)", "pow(3)"),
        ("ones", "zeros"),
        ("keepdim=True", "keepdim=False"),
        ("def extra_repr(self)", "@property\n    def extra_repr(self)"),
        (", eps=1e-6", ", eps"),
        ("(nn.Module)", "(nn.Linear)"),
        ("        wide = x.float()\n", "        wide = x.float()\n        pass\n"),
    ],
)
def test_a_change_in_the_cell_is_found(right, wrong):
    differs = drift(TARGET, NORM.replace(right, wrong, 1))
    assert f"--- {TARGET}" in differs and "\n+" in differs


def test_a_change_in_the_package_is_found(monkeypatch):
    from qwen2_edu import layers

    changed = inspect.getsource(layers).replace("pow(2)", "pow(3)")
    monkeypatch.setattr(inspect, "getsource", lambda module: changed)
    lines = drift(TARGET, NORM).splitlines()
    assert [line.strip("+- ") for line in lines if line[0] in "+-"][2:] == [
        "mean_square = wide.pow(3).mean(-1, keepdim=True)",
        "mean_square = wide.pow(2).mean(-1, keepdim=True)",
    ]


@pytest.mark.parametrize(
    "exported, cell, says",
    [
        ("qwen2_edu.layer.RMSNorm", NORM, "no module qwen2_edu.layer"),
        ("qwen2_edu.files.block.half", NORM, "no module qwen2_edu.files.block"),
        ("qwen2_edu.file.blocks.half", NORM, "no module qwen2_edu.file"),
        ("qwen2_edu.files.blocks.whole", NORM, "not defined exactly once in the package"),
        ("qwen2_edu.layers.Norm", NORM, "not defined exactly once in the package"),
        (TARGET, "x = 1", "not defined exactly once in the cell"),
        (TARGET, NORM + NORM, "not defined exactly once in the cell"),
    ],
)
def test_a_wrong_tag_is_found(exported, cell, says):
    assert says in drift(exported, cell)


def test_a_field_stays_a_field_and_a_variable_a_variable():
    fields = "class A:\n    x: Tensor\n    y: Cache | None = None"
    assert bare(fields, "A") == bare(fields.replace("Tensor", "int"), "A")
    assert bare(fields, "A") != bare(fields.replace("y: Cache | None", "y"), "A")
    assert bare(fields, "A") != bare(fields.replace("x: Tensor", "pass"), "A")
    nested = "def f():\n    a: int\n    if a:\n        b: int = 1"
    assert bare(nested, "f") == bare("def f():\n    if a:\n        b = 1", "f")


def test_an_import_may_be_relative_in_the_package_alone():
    inside = "def f():\n    from .generation import generate\n    return generate"
    assert bare(inside, "f") == bare(inside.replace(".gen", "qwen2_edu.gen"), "f")
    assert bare(inside, "f") != bare(inside.replace(".gen", "qwen2_edu.other.gen"), "f")


def test_a_method_may_be_exported_alone():
    method = (
        "def forward(self, x):\n"
        "    return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))"
    )
    inside = "class SwiGLU(SwiGLU):\n    " + method.replace("\n", "\n    ")
    for cell in (method, inside):
        assert drift("qwen2_edu.layers.SwiGLU.forward", cell) == ""
    assert "+" in drift("qwen2_edu.layers.SwiGLU.forward", method.replace("*", "+"))


def test_a_module_may_lie_in_a_folder():
    half = "def half(b):\n    return b.view(torch.float16).float()"
    assert drift("qwen2_edu.files.blocks.half", half) == ""
    assert "+" in drift("qwen2_edu.files.blocks.half", half.replace("float16", "bfloat16"))
    whole = [f"qwen2_edu.{piece}" for piece in LESSON_OF]
    without = [name for name in whole if name != "qwen2_edu.files.blocks.half"]
    assert missing(without, {"09"}) == ["files.blocks.half"] and missing(without, {"08"}) == []


def test_what_is_missing_or_repeated_is_found():
    whole = [f"qwen2_edu.{piece}" for piece in LESSON_OF]
    lessons = set(LESSON_OF.values())
    assert missing(whole, lessons) == [] and repeated(whole) == []
    assert missing(whole[1:], lessons) == ["bpe.token_to_text"]
    assert missing(whole[1:], lessons - {"01"}) == []
    pieces = [f"{TARGET}.{name}" for name in ("__init__", "forward", "extra_repr")]
    in_parts = [name for name in whole if name != TARGET] + pieces
    assert missing(in_parts, lessons) == [] and repeated(in_parts) == []
    assert missing(in_parts[:-1], lessons) == ["layers.RMSNorm"]
    assert repeated([TARGET, TARGET]) == [TARGET]
    assert repeated([TARGET, *pieces]) == pieces
