import errno

import pytest
import torch
from safetensors import SafetensorError

from dataseg.io import atomic
from dataseg.io.atomic import replacing, write_tensors, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.name.startswith(".a.json.")
        assert temporary.suffix == ".tmp"
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.json"]


def write_half(path, is_folder):
    with replacing(path) as temporary:
        if is_folder:
            temporary.mkdir()
        (temporary / "part" if is_folder else temporary).write_text("half")
        raise OSError("disk full")


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_writer_that_fails_leaves_the_old_one_and_nothing_else(tmp_path, is_folder):
    path = tmp_path / "a"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path, is_folder)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_told_of_tensors_too(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(atomic, "save_file", full)
    with pytest.raises(OSError, match="No space left") as stop:
        write_tensors(tmp_path / "a", {"x": torch.zeros(3)}, {})
    assert (stop.value.errno, stop.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert names(tmp_path) == []


def test_folders_and_links_are_replaced(tmp_path):
    path, link = tmp_path / "folder", tmp_path / "link"
    for number in (1, 2):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / f"{number}.txt").write_text("x")
        with replacing(link) as temporary:
            temporary.symlink_to(path.name)
    assert names(path) == names(link) == ["2.txt"]
    assert names(tmp_path) == ["folder", "link"]
