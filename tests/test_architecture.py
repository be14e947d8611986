"""Rules that hold for every file: no private imports, no class counts in YAML. Imports: see pyproject.toml."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"dataseg": ROOT / "src" / "dataseg", "data_modules": ROOT / "data_modules", "callbacks": ROOT / "callbacks"}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))

DOCUMENTED = {"torch._subclasses.fake_tensor.FakeTensorMode", "torch.utils._python_dispatch.TorchDispatchMode"}
"""Of private modules, but torch's documentation names them so, and there is no other path."""


def _module_name(path: Path) -> str:
    for package, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            return ".".join(parts).removesuffix(".__init__")
    raise AssertionError(path)


def _imports(path: Path) -> list[str]:
    """Every imported module, and every name imported from a module, in full."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_private_third_party_imports(path: Path):
    for imported in _imports(path):
        if imported.split(".")[0] not in {*PACKAGES, "__future__"} and imported not in DOCUMENTED:
            private = [part for part in imported.split(".") if part.startswith("_") and not part.startswith("__")]
            assert not private, f"{_module_name(path)} imports {imported}"


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_class_count_in_yaml(path: Path):
    def keys(node):
        if isinstance(node, dict):
            for key, value in node.items():
                yield key
                yield from keys(value)
        elif isinstance(node, list):
            for value in node:
                yield from keys(value)

    counts = {"num_classes", "num_things", "num_stuff", "stuff_classes", "thing_classes"}
    assert not counts & set(keys(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "exp").glob("*.yaml")), ids=lambda p: p.stem)
def test_experiment_opens_with_command_cost_and_score(path: Path):
    header = path.read_text().split("\n\n")[0]
    assert f"make train EXP={path.stem}" in header
    assert "Cost:" in header
    assert "Score:" in header
