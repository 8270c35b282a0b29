"""The notebooks: the laptop's runs from top to bottom, the commands of both parse."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.test_guides import parse

nbformat = pytest.importorskip("nbformat")
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def cells(name: str) -> list[str]:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", ["laptop.ipynb", "colab.ipynb"])
def test_commands_parse_and_no_output_is_kept(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    found = 0
    values = {"MINUTES / 2": "1", "MINUTES": "2", "OUT": "out", "LEVEL": "dolly"}
    for source in cells(name):
        for line in re.findall(r"^!(?:nohup )?newllm (.*)$", source, re.MULTILINE):
            for variable, value in values.items():
                line = line.replace("{" + variable + "}", value)
            words = shlex.split(line.split(" > ")[0])
            assert "{" not in line
            parse(words)
            found += 1
    assert found >= 4


@pytest.mark.slow
def test_the_laptops_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    from traitlets.config import Config

    monkeypatch.setenv("NEWLLM_NOTEBOOK_MINUTES", "0.05")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / "laptop.ipynb", as_version=4)
    # Sockets that are files: of ports, one that was free a moment ago may be another test's.
    sockets = {"transport": "ipc", "ip": str(tmp_path / "kernel")}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}},
        config=Config({"KernelManager": sockets}),
    )  # fmt: skip
    client.execute()
    said = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "Finished: " in said
    assert "tokens read, held in" in said
    assert "Backward transfer" in said
    assert (tmp_path / "notebook_run" / "progress.html").stat().st_size > 10_000
