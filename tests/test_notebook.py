"""The notebook for students is made from its script, carries no outputs, and runs as it stands."""

import os
import pathlib

import jupytext
import nbclient
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "mixer.ipynb"
SCRIPT = ROOT / "notebooks" / "mixer_notebook.py"


def test_the_notebook_is_that_of_its_script():
    notebook, script = jupytext.read(NOTEBOOK), jupytext.read(SCRIPT)
    cells, of_script = ([(cell.cell_type, cell.source) for cell in one.cells] for one in (notebook, script))
    assert cells == of_script, "make notebook"
    assert notebook.metadata["kernelspec"] == script.metadata["kernelspec"]


def test_the_notebook_carries_no_outputs():
    """They differ from machine to machine, and their changes would hide those of the text."""
    code = [cell for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code), "clear them in Jupyter"
    assert {cell.execution_count for cell in code} == {None}


def test_each_text_cell_is_short():
    for cell in jupytext.read(NOTEBOOK).cells:
        assert len(cell.source.splitlines()) <= (8 if cell.cell_type == "markdown" else 22), cell.source


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    """As a student opens it: in its own folder. It trains for a minute."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("XLA_FLAGS")  # the tests' eight devices
    notebook = jupytext.read(NOTEBOOK)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    accuracies = {
        line.rpartition(": ")[0]: float(line.rpartition(": ")[2].rstrip("%"))
        for line in printed.splitlines()
        if line.startswith("accuracy")
    }
    assert accuracies["accuracy on 297 digits that it has not seen"] > 90
    assert accuracies["accuracy, patches shuffled"] < 50
    assert accuracies["accuracy, patches and weights shuffled"] == accuracies["accuracy"] > 90
