"""`dataseg.config.extends`: configuration files that extend others."""

from pathlib import Path

import pytest

from dataseg.config.extends import expand, lineage
from dataseg.io.shipped import find
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


def test_an_experiment_s_name_stands_for_its_files_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *files, name = expand(["fit", "--exp", "mini_all+ema"])[1:]
    found = [Path(word.removeprefix("--config=")) for word in files if word.startswith("--config=")]
    assert [path.name for path in found] == ["base.yaml", "mini_all.yaml", "ema.yaml"]
    assert all(path.is_file() for path in found)
    assert name == "--extends=null"
    assert "--exp=mini_all+ema" in files
    with pytest.raises(UserError, match=r"conf/exp/mini_al.yaml: no such configuration file; conf/exp has .*mini_all"):
        expand(["fit", "--exp=mini_al"])


def test_after_a_file_it_is_only_a_name(tmp_path):
    write(tmp_path, a="x: 1")
    file = f"--config={tmp_path / 'a.yaml'}"
    assert expand([file, "--exp", "any"]) == [file, "--exp=any"]


def test_files_of_one_s_own_extend_the_project_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "exp").mkdir(parents=True)
    write(tmp_path / "conf" / "exp", mine="extends: mini_ade.yaml", other="extends: ../own.yaml")
    write(tmp_path, loose="extends: exp/mini_all.yaml")
    assert [p.stem for p in lineage(Path("conf/exp/mine.yaml"))] == ["base", "mini_all", "mini_ade", "mine"]
    assert [p.stem for p in lineage(Path("conf/exp/other.yaml"))] == ["base", "own", "other"]
    assert [p.stem for p in lineage(Path("loose.yaml"))] == ["base", "mini_all", "loose"]
    write(tmp_path / "conf" / "exp", mini_ade="x: 1")
    assert [p.stem for p in lineage(Path("conf/exp/mine.yaml"))] == ["mini_ade", "mine"]


def test_files_of_conf_are_found_within_values_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, shipped = "{coco: conf/data/coco_val.yaml, ade: own/conf/data/a.yaml}", find("conf/data/coco_val.yaml")
    assert shipped.is_file()
    assert expand([f"--data.val={value}", "--x", value]) == [
        f"--data.val={{coco: {shipped}, ade: own/conf/data/a.yaml}}",
        "--x",
        f"{{coco: {shipped}, ade: own/conf/data/a.yaml}}",
    ]
    (tmp_path / "conf" / "data").mkdir(parents=True)
    write(tmp_path / "conf" / "data", coco_val="x: 1")
    assert expand([f"--data.val={value}"]) == [f"--data.val={value}"]
