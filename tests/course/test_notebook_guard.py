"""What every committed notebook must be, beyond giving the outputs that it shows.

nbval does not compare a cell that was never run, ignores images, and knows nothing of style. This
guard reads the files alone.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from tests.course.refresh import LANGUAGE, kept

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 300 * 1024  # bytes
LONGEST, LONGEST_EXPORT, MEDIAN = 35, 50, 8  # lines of a code cell
WORDS_PER_LINE = 5  # of prose, for each line of code, in the whole notebook
CELLS, CELLS_OF_TOUR = (50, 90), (30, 90)  # of a lesson, fewest and most
IMAGE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)>\s]+)|<img\b[^>]*?\bsrc\s*=\s*[\"']?([^\"'\s>]+)", re.I)
CODE = re.compile(r"```.*?```|~~~.*?~~~|`[^`\n]*`", re.DOTALL)
TAG = "nbval-ignore-output"
MARK = re.compile(r"^\s*#\s*(NBVAL_IGNORE_OUTPUT|PYTEST_VALIDATE_IGNORE_OUTPUT)", re.M)
# What is never run or never compared proves nothing.
OTHER_TAGS = ("nbval-skip", "nbval-raises-exception", "raises-exception")
OTHER_MARKS = re.compile(r"^\s*#\s*(NBVAL_SKIP|NBVAL_RAISES_EXCEPTION)", re.M)


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def lines_of(cell: dict) -> int:
    """Lines of a code cell that are not blank."""
    return sum(bool(line.strip()) for line in text_of(cell).splitlines())


def faults(path: Path) -> list[str]:
    """What is wrong with the notebook; empty if nothing is."""
    found = []
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if path.stat().st_size > LARGEST:
        found.append(f"{path.stat().st_size:,} bytes, at most {LARGEST:,}")
    if "widgets" in notebook["metadata"]:
        found.append("metadata.widgets is stored")
    if (kernel := notebook["metadata"].get("kernelspec", {}).get("name")) != "python3":
        found.append(f"kernelspec is {kernel!r}, not 'python3'")
    if notebook["metadata"].get("language_info") != LANGUAGE:
        found.append("language_info is not as make notebooks writes it: opening it would change it")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    prose = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]

    counts = [cell["execution_count"] for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"execution counts are {counts}, not 1 to {len(code)}")
    for number, cell in enumerate(code, 1):
        found += [f"code cell {number}: {fault}" for fault in faults_of_code(cell)]
        if cell["metadata"] != kept(cell["metadata"].get("tags", [])):
            found.append(f"code cell {number}: its metadata is not as make notebooks writes it")
    for cell in prose:
        found += faults_of_images(text_of(cell), path.parent, cell.get("attachments", {}))

    lines, words = sum(map(lines_of, code)), sum(len(text_of(cell).split()) for cell in prose)
    if code and median(map(lines_of, code)) > MEDIAN:
        found.append(f"the median code cell has more than {MEDIAN} lines")
    if words < WORDS_PER_LINE * lines:
        found.append(f"{words} words of prose for {lines} lines of code, at least 5 a line")
    return found


def faults_of_lesson(path: Path) -> list[str]:
    """Which parts of a lesson are missing? Learners know their way by them."""
    notebook, number = json.loads(path.read_text(encoding="utf-8")), path.stem[:2]
    cells = notebook["cells"]
    code = "\n".join(text_of(cell) for cell in cells if cell["cell_type"] == "code")
    prose = "\n".join(text_of(cell) for cell in cells if cell["cell_type"] == "markdown")
    tags = [tag for cell in cells for tag in cell["metadata"].get("tags", [])]
    tour = number == "00"
    fewest, most = CELLS_OF_TOUR if tour else CELLS
    parts = {
        f"{fewest} to {most} cells, not {len(cells)}": fewest <= len(cells) <= most,
        f"a picture figures/here_{number}.png": f"figures/here_{number}.png" in pictures(prose),
        f'setup("{path.stem}")': re.search(rf"\bsetup\(.{path.stem}.\)", code),
        "a comparison, equal(...)": re.search(r"^\s*equal\(", code, re.M),
        "a comparison with transformers or the goldens": tour
        or re.search(r"\btransformers\b|\bgoldens\b", code),
        "a planted mistake, with caught(...)": re.search(r"^\s*with caught\(", code, re.M),
        "an export cell": tour or any(tag.startswith("export:") for tag in tags),
        "an exercise, check.ex...": re.search(rf"^check\.ex{number}_\d", code, re.M),
        "a heading with the word recap": re.search(r"^#+ .*\brecap\b", prose, re.M | re.I),
    }
    return [part for part, there in parts.items() if not there]


def faults_of_code(cell: dict) -> list[str]:
    found, source = [], text_of(cell)
    tags = cell["metadata"].get("tags", [])
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            found.append(f"a stored error, {output['ename']}")
        if "image/svg+xml" in output.get("data", {}):
            found.append("an SVG figure is stored: its text differs each time, so use PNG")
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            found.append("a widget's id is stored, which is new each time: make notebooks drops it")
        html = "".join(output.get("data", {}).get("text/html", ""))
        found += [f"a picture from elsewhere: {url}" for url in pictures(html) if "//" in url]
    longest = LONGEST_EXPORT if any(tag.startswith("export:") for tag in tags) else LONGEST
    if lines_of(cell) > longest:
        found.append(f"{lines_of(cell)} lines, at most {longest}")
    if (TAG in tags or MARK.search(source)) and not re.search(r"^\s*assert\b", source, re.M):
        found.append("its output is ignored, and nothing in it is asserted")
    if set(tags) & set(OTHER_TAGS) or OTHER_MARKS.search(source):
        found.append("it is skipped, or may raise")
    if source.rstrip().endswith(";"):
        found.append("it ends in a semicolon, which nbval drops: the value would be shown")
    return found


def pictures(text: str) -> list[str]:
    return [markdown or html for markdown, html in IMAGE.findall(text)]


def faults_of_images(text: str, folder: Path, attached: dict) -> list[str]:
    found = []
    for url in pictures(CODE.sub("", text)):
        if url.startswith("attachment:"):
            if url.removeprefix("attachment:") not in attached:
                found.append(f"the picture {url} is not attached")
        elif "//" in url or url.startswith("data:"):
            found.append(f"a picture that is no local file: {url[:60]}")
        elif not (folder / url).is_file():
            found.append(f"the picture {url} does not exist")
    return found


# --- the notebooks as they are


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path):
    assert faults(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_where_an_explorer_ran_a_picture_of_it_is_stored(path):
    """GitHub runs no widget: its picture is there, or the next cell's figure is."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = [i for i, cell in enumerate(cells) if "qx-still" in json.dumps(cell.get("outputs"))]
    for i in shown:
        assert any(
            "image/png" in output.get("data", {})
            for cell in cells[i : i + 2]
            for output in cell.get("outputs", [])
        ), f"cell {i}"
    assert shown or "viz.attention_explorer(" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_every_part_of_a_lesson(path):
    assert faults_of_lesson(path) == []


def test_files_of_the_package_that_lessons_name_exist():
    named = {
        (path.name, file)
        for path in NOTEBOOKS
        for file in re.findall(r"qwen2_edu/[a-z_/]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert named and [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()] == []


def test_there_is_a_tour():
    assert [path.name for path in NOTEBOOKS][:1] == ["00_tour.ipynb"]


# --- and the guard itself: each rule is broken once


def prose_cell(text):
    return {"cell_type": "markdown", "id": "p", "metadata": {}, "source": text}


def code_cell(count, source="print(1)", tags=(), outputs=()):
    return {
        "cell_type": "code",
        "id": f"c{count}",
        "execution_count": count,
        "metadata": kept(list(tags)),
        "outputs": list(outputs),
        "source": source.splitlines(keepends=True),
    }


LONG = "\n".join(f"x{i} = {i}" for i in range(36))
WORDS = "word " * 800
SOUND = {
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": LANGUAGE,
    },
    "nbformat": 4,
    "nbformat_minor": 5,
    "cells": [
        prose_cell(f"{WORDS} ![a map](map.png) and `![no picture](https://none)`"),
        code_cell(1, outputs=[{"output_type": "stream", "name": "stdout", "text": "1\n"}]),
        code_cell(2, "# NBVAL_IGNORE_OUTPUT\nx = 1\nassert x == 1\nprint(x)"),
        code_cell(3, "y = 2\nassert y == 2", tags=[TAG]),
        code_cell(4, LONG, tags=["export:qwen2_edu.layers.RMSNorm"]),
    ],
}


def write(folder, notebook):
    (folder / "map.png").write_bytes(b"png")
    path = folder / "made_up.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def test_sound_notebook_has_no_faults(tmp_path):
    assert faults(write(tmp_path, SOUND)) == []


def add(cell):
    return lambda notebook: notebook["cells"].append(cell)


def metadata(**entries):
    return lambda notebook: notebook["metadata"].update(entries)


def error(notebook):
    output = {"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}
    notebook["cells"][1]["outputs"].append(output)


def unfolded(notebook):
    notebook["cells"][4]["metadata"].pop("jupyter")


def shown(kind, value):
    data = {"output_type": "display_data", "data": {kind: value}, "metadata": {}}
    return add(code_cell(5, outputs=[data]))


def little_prose(notebook):
    notebook["cells"][0]["source"] = "word " * 100


FAULTS = {
    "a cell that was not run": (add(code_cell(None)), "execution counts"),
    "cells run out of order": (add(code_cell(7)), "execution counts"),
    "a stored error": (error, "code cell 1: a stored error, KeyError"),
    "widgets": (metadata(widgets={}), "metadata.widgets"),
    "another kernel": (metadata(kernelspec={"name": "venv"}), "kernelspec is 'venv'"),
    "no kernel": (metadata(kernelspec={}), "kernelspec is None"),
    "another language": (metadata(language_info={"name": "python"}), "language_info is not as"),
    "a picture that is not there": (add(prose_cell("![x](no.png)")), "no.png does not exist"),
    "an html picture that is not there": (add(prose_cell('<img src="no.png">')), "does not exist"),
    "a picture from the web": (add(prose_cell("![x](https://a.b/c.png)")), "no local file"),
    "an html picture from the web": (add(prose_cell("<img src=http://a.b/c>")), "no local file"),
    "a picture without a scheme": (add(prose_cell("![x](//a.b/c.png)")), "no local file"),
    "a picture that is not attached": (add(prose_cell("![x](attachment:x.png)")), "not attached"),
    "a picture from the web in an output": (
        shown("text/html", "<img src='https://a.b/c'>"),
        "from elsewhere",
    ),
    "a widget's view": (
        shown("application/vnd.jupyter.widget-view+json", {"model_id": "5f"}),
        "a widget's id is stored",
    ),
    "an SVG figure": (shown("image/svg+xml", "<svg/>"), "SVG"),
    "a large file": (shown("text/plain", "x" * LARGEST), "bytes, at most"),
    "a long cell": (add(code_cell(5, LONG)), "code cell 5: 36 lines, at most 35"),
    "a long export cell": (
        add(code_cell(5, LONG + "\n" + LONG, tags=["export:x"])),
        "code cell 5: 72 lines, at most 50",
    ),
    "an ignored output by tag": (add(code_cell(5, "print(1)", tags=[TAG])), "nothing in it is"),
    "an ignored output by comment": (
        add(code_cell(5, "# NBVAL_IGNORE_OUTPUT\nprint('assert')")),
        "nothing in it is asserted",
    ),
    "an export cell that is not folded": (unfolded, "code cell 4: its metadata"),
    "a skipped cell by tag": (add(code_cell(5, tags=["nbval-skip"])), "skipped"),
    "a skipped cell by comment": (add(code_cell(5, "# NBVAL_SKIP\n1")), "skipped"),
    "a cell that may raise": (add(code_cell(5, tags=["raises-exception"])), "may raise"),
    "a value hidden by a semicolon": (add(code_cell(5, "f(1);\n")), "semicolon"),
    "little prose": (little_prose, "words of prose"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_nothing_else(tmp_path, name):
    plant, says = FAULTS[name]
    notebook = copy.deepcopy(SOUND)
    plant(notebook)
    found = faults(write(tmp_path, notebook))
    assert len(found) == 1 and says in found[0]


def test_cells_may_be_long_but_not_most_of_them(tmp_path):
    notebook = copy.deepcopy(SOUND)
    notebook["cells"] = [prose_cell(WORDS)]
    notebook["cells"] += [code_cell(i, "\n".join("x" * 9)) for i in (1, 2, 3)]
    assert faults(write(tmp_path, notebook)) == ["the median code cell has more than 8 lines"]


LESSON = {
    "cells": [
        prose_cell("# Rotary positions\n![the map](figures/here_03.png)"),
        code_cell(1, 'from qwen2_edu.course import setup\ncolours = setup("03_rope")'),
        code_cell(2, "equal(ours, theirs)"),
        code_cell(3, "from transformers import Qwen2Config"),
        code_cell(4, 'with caught("a wrong sign"):\n    check_it()'),
        code_cell(5, "def apply_rope(): ...", tags=["export:qwen2_edu.rope.apply_rope"]),
        code_cell(6, "check.ex03_1(my_rotate)"),
        prose_cell("## Recap, and where it lives"),
        *[prose_cell("word")] * 60,
    ],
}


def lesson(folder, name="03_rope", without=None):
    cells = [cell for i, cell in enumerate(LESSON["cells"]) if i != without]
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def test_sound_lesson_has_every_part(tmp_path):
    assert faults_of_lesson(lesson(tmp_path)) == []


@pytest.mark.parametrize(
    "without, says",
    [
        (0, "here_03.png"),
        (1, 'setup("03_rope")'),
        (2, "equal("),
        (3, "goldens"),
        (4, "caught("),
        (5, "export"),
        (6, "check.ex"),
        (7, "recap"),
    ],
)
def test_each_missing_part_is_found(tmp_path, without, says):
    (fault,) = faults_of_lesson(lesson(tmp_path, without=without))
    assert says in fault


def test_parts_of_another_lesson_do_not_count(tmp_path):
    found = faults_of_lesson(lesson(tmp_path, "04_attention"))
    assert [fault.split("(")[0] for fault in found] == [
        "a picture figures/here_04.png",
        "setup",
        "an exercise, check.ex...",
    ]


@pytest.mark.parametrize("number, tour, other", [(29, 1, 1), (30, 0, 1), (50, 0, 0), (91, 1, 1)])
def test_number_of_cells_is_bounded(tmp_path, number, tour, other):
    for name, faulty in (("00_tour", tour), ("03_rope", other)):
        path = lesson(tmp_path, name)
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = notebook["cells"][:8] + notebook["cells"][8:9] * (number - 8)
        path.write_text(json.dumps(notebook), encoding="utf-8")
        assert any(f"cells, not {number}" in fault for fault in faults_of_lesson(path)) == faulty


# --- and the time a lesson takes: lesson_times.py

PRETEND = """
import pytest

class Cell(pytest.Item):
    def runtest(self):
        pass

class Notebook(pytest.File):
    def collect(self):
        yield from (Cell.from_parent(self, name=f"Cell {i}") for i in range(3))

def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return Notebook.from_parent(parent, path=file_path)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and isinstance(item, Cell):
        report.duration = float(item.path.read_text().split()[0])
    return report
"""


OPENS = r'"model = from_pretrained(\"released\")"'


@pytest.mark.parametrize(
    "seconds, opens, code, says",
    [
        ("19", "", 0, "\n"),
        ("21", "", 0, "  slow: over 60 s"),
        ("31", "", 1, "  FAILED: over 90 s"),
        ("29", OPENS, 0, "\n"),
        ("46", OPENS, 1, "  FAILED: over 135 s"),
    ],
)
def test_a_slow_lesson_fails_the_run(tmp_path, seconds, opens, code, says):
    (tmp_path / "pretend.py").write_text(PRETEND)
    (tmp_path / "notebooks").mkdir()
    plugin = Path(__file__).with_name("lesson_times.py")
    (tmp_path / plugin.name).write_bytes(plugin.read_bytes())
    (tmp_path / "notebooks/00_tour.ipynb").write_text("1")
    (tmp_path / "notebooks/03_rope.ipynb").write_text(f"{seconds} {opens}")
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"]
        + ["-p", "pretend", "-p", "lesson_times", "-p", "no:cacheprovider"]
        + ["test_nothing.py", "notebooks/00_tour.ipynb", "notebooks/03_rope.ipynb"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert result.returncode == code, result.stdout
    assert f"{3 * int(seconds):.1f} s  notebooks/03_rope.ipynb{says}" in result.stdout
    assert "3.0 s  notebooks/00_tour.ipynb\n" in result.stdout
