"""Run lessons and store their outputs, normalised, so that running twice changes nothing.

python tests/course/refresh.py notebooks/03_rope.ipynb ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor
from nbformat import NotebookNode, from_dict

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
# What the kernel of the pinned Python says of itself. JupyterLab writes that into each notebook it
# opens; where it is there already, opening a lesson does not mark it as changed.
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": "3.11.7",
}


def kept(tags: list[str]) -> dict:
    """The metadata of a cell with these tags. The package's own code is folded away: by then the
    lesson has built a short version of it, and a click opens this one.
    """
    fold = {"jupyter": {"source_hidden": True}}
    return ({"tags": tags} if tags else {}) | (
        fold if any(tag.startswith("export:") for tag in tags) else {}
    )


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Keep what readers and tests need: no times, no state of an editor."""
    CoalesceStreamsPreprocessor().preprocess(notebook, {})  # how prints arrive is chance
    notebook.metadata = from_dict({"kernelspec": KERNEL, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], {}], strict=True):
        cell.metadata = from_dict(kept(cell.metadata.get("tags", [])))
        html = ""
        for output in list(cell.get("outputs", [])):  # a widget's id is chance; its one line stays
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            # An explorer's picture: GitHub shows it, but where the next cell draws the same.
            if "qx-still" in html and ".static()" in following.get("source", ""):
                cell.outputs.remove(output)
            html = output.get("data", {}).get("text/html", "")
    return notebook


def refresh(path: Path) -> bool:
    """Run one notebook in its folder; answers whether the file changed."""
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    runner = ExecutePreprocessor(
        timeout=120, kernel_name="python3", record_timing=False, store_widget_state=False
    )
    runner.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
    after = nbformat.writes(normalise(notebook)) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8", newline="\n")
    return after != before


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {'updated' if refresh(Path(name)) else 'as it was'}", flush=True)
