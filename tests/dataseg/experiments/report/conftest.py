import shutil

import pytest
from fake_suite import FIGURES, Tree


@pytest.fixture(scope="session")
def complete(tmp_path_factory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("complete"))
    tree.write_suite()
    for row, figures in FIGURES.items():
        for seed in range(len(figures["ade.miou"])):
            tree.write_run(row, seed)
    return tree


@pytest.fixture
def tree(complete, tmp_path) -> Tree:
    """A suite with all its runs; a test may change them."""
    shutil.copytree(complete.root, tmp_path / "tree")
    return Tree(tmp_path / "tree")
