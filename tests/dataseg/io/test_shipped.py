"""`dataseg.io.shipped`: files of the project from any working directory, and packages that are not ours."""

import sys

import pytest

from dataseg.io.shipped import CONF, TOP_LEVEL, find, require_own_packages
from dataseg.structures import UserError


@pytest.mark.parametrize("name", ["conf/exp/mini_all.yaml", "data_modules/vocabularies/mini_text.safetensors", "conf"])
def test_own_files_go_before_those_of_the_project(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find(name).is_absolute()
    assert find(name).exists()
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert str(find(name)) == name


def test_other_names_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("conf/exp/none.yaml", "exp/mini_all.yaml", str(tmp_path / "conf" / "base.yaml")):
        assert str(find(name)) == name
    assert CONF.joinpath("base.yaml").is_file()


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_another_package_of_our_name_is_refused(tmp_path, monkeypatch, name):
    require_own_packages()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"imports '{name}' from {tmp_path}.* environment of its own"):
        require_own_packages()
