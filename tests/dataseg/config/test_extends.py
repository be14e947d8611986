"""`dataseg.config.extends`: configuration files that extend others."""

from pathlib import Path

import pytest

from dataseg.config.extends import expand, lineage
from dataseg.structures import UserError


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)


def test_parents_come_first(tmp_path):
    write(tmp_path, a="x: 1", b="extends: a.yaml", c="extends: b.yaml")
    assert [path.name for path in lineage(tmp_path / "c.yaml")] == ["a.yaml", "b.yaml", "c.yaml"]


def test_paths_are_relative_to_the_file_that_names_them(tmp_path):
    (tmp_path / "exp").mkdir()
    write(tmp_path, base="x: 1")
    write(tmp_path / "exp", one="extends: ../base.yaml")
    found = lineage(tmp_path / "exp" / "one.yaml")
    assert found[0].samefile(tmp_path / "base.yaml")


def test_both_spellings_are_expanded_and_the_rest_is_left_alone(tmp_path):
    write(tmp_path, a="x: 1", b="extends: a.yaml")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    words = [f"--config={a}", f"--config={b}", "--extends=null"]
    assert expand(["fit", "--config", str(b), "--x=2"]) == ["fit", *words, "--x=2"]
    assert expand([f"--config={b}"]) == words
    assert expand([f"--config={a}"]) == [f"--config={a}"]
    assert expand([]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("extends: [a, b]", "must be the path of one file"),
        ("extends: missing.yaml", "missing.yaml: no such configuration file"),
        ("x: [1", "cannot be read as YAML"),
        ("extends: one.yaml", "extends itself"),
    ],
)
def test_mistakes_name_the_file(tmp_path, content: str, message: str):
    write(tmp_path, one=content)
    with pytest.raises(UserError, match=message):
        lineage(tmp_path / "one.yaml")
