"""The notebook of the documentation runs with the packaged demo model, and is committed without outputs."""

import base64
import io
import os
import re
from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "docs" / "notebooks" / "first_voice.ipynb"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, and the folder in which it ran."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(PATH, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        # The kernel keeps its files there.
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder)))))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, folder


def read_results(notebook):
    """What each cell returned, as text and as HTML."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs if output.output_type == "execute_result"]
    return [output.data for output in outputs]


def test_it_has_no_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_trains_and_continues_where_it_stopped(executed):
    first, resumed, *_ = (eval(data["text/plain"]) for data in read_results(executed[0])[:2])
    assert list(first) == [2, 4, 6]
    assert list(resumed) == [8, 10, 12]
    assert resumed[12] < first[2]


def test_speech_is_a_player(executed):
    (page,) = [data["text/html"] for data in read_results(executed[0]) if "text/html" in data]
    encoded = re.search(r'src="data:audio/mpeg;base64,([^"]+)"', page)[1]
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert abs(samples).max() > 0.01
    assert "eight three one five" in page


def test_it_evaluates_and_logs_sound(executed):
    notebook, folder = executed
    scores = eval(read_results(notebook)[-1]["text/plain"])
    assert scores["similarity"]["n"] == 4
    last = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    assert re.search(r"3 clips, 2 event files, True", last)
    assert (folder / "first_voice" / "report.html").stat().st_size > 10_000
