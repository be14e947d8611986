"""The code blocks of the documentation are run, page by page, in the order they stand in."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest
import yaml
from cli_runs import ROOT
from lightning.pytorch.profilers import Profiler, PyTorchProfiler
from nbclient import NotebookClient

from dataseg.cli import co_training
from dataseg.config.instantiate import instantiate


def sections(page: str) -> list[tuple[str, str]]:
    """Title and Python code of each section of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = [
        (part.partition("\n")[0], re.findall(r"```python\n(.*?)```", part, re.DOTALL)) for part in text.split("\n## ")
    ]
    return [(title, "\n".join(blocks)) for title, blocks in found if blocks]


def run(parts: list[tuple[str, str]]) -> None:
    names: dict = {}
    for title, code in parts:
        exec(compile(code, title, "exec"), names)


def test_parts_of_the_library_alone(capsys):
    run([part for part in sections("library.md") if "alone" in part[0]])
    assert capsys.readouterr().out.startswith("PQ 70.0, mIoU 70.0")  # mean of 11 / 15 and 8 / 12


RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", re.findall(r"^dataseg (fit .*)$", RECIPES, re.MULTILINE))
def test_commands_of_recipes_are_understood(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(SystemExit) as stop:
        co_training.run([*shlex.split(command), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["exp"] in command


def test_profile_of_recipes():
    (content,) = re.findall(r"```yaml\n(.*?)```", RECIPES, re.DOTALL)
    section = yaml.safe_load(content)["trainer"]["profiler"]
    profiler = instantiate(Profiler, section, "trainer.profiler")
    assert isinstance(profiler, PyTorchProfiler)


@pytest.mark.slow
def test_library(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(sections("library.md"))
    assert "segments of (96, 128)" in capsys.readouterr().out
    assert Path("runs", "mini_all", "version_0", "config.yaml").is_file()


@pytest.mark.slow
def test_tutorial(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    first = notebook.cells[1]
    assert "OWN_STEPS = 40" in first.source
    quick = {
        "OWN_STEPS = 40": "OWN_STEPS = 1",
        "{\n": '{\n"trainer.limit_val_batches": 2, "trainer.num_sanity_val_steps": 0,',
    }
    for before, after in quick.items():
        first.source = first.source.replace(before, after)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    table = next(cell.outputs[0].text for cell in notebook.cells if "callback_metrics[key]" in cell.source)
    assert all(key in table for key in ("ade.miou", "coco.pq", "o365.mask_ap"))
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-2].outputs)
