"""Files found by the names that annotation files state."""

import unicodedata
import zipfile

import pytest

from dataseg.io.paths import FileNames, list_images
from dataseg.structures import UserError

FILES = ["a.jpg", "b.JPG", "night/c.png", unicodedata.normalize("NFD", "Brücke.jpg"), "my photo #1.jpg", "sub/a.jpg"]
CLUTTER = ["._a.jpg", "__MACOSX/._a.jpg", "Thumbs.db", ".DS_Store"]
STATED = {
    "a.jpg": "a.jpg",
    "./a.jpg": "a.jpg",
    "a.jpg ": "a.jpg",
    "a": "a.jpg",
    "C:\\Users\\x\\a.jpg": "a.jpg",
    "..\\..\\media\\upload\\4\\a.jpg": "a.jpg",
    "/mnt/other/photos/a.jpg": "a.jpg",
    "/mnt/other/sub/a.jpg": "sub/a.jpg",
    "https://example.org/b/a.jpg?size=2": "a.jpg",
    "s3://bucket/b/a.jpg": "a.jpg",
    "/data/local-files/?d=photos/a.jpg": "a.jpg",
    "/data/upload/3/1f2e3d4c-a.jpg": "a.jpg",
    "b.jpg": "b.JPG",
    "c.png": "night/c.png",
    "Brücke.jpg": FILES[3],
    "my%20photo%20%231.jpg": "my photo #1.jpg",
    "d.jpg": None,
    "day/c.png": None,  # not that of another folder
    "a.png": None,
}


@pytest.fixture(params=["folder", "zip"])
def place(request, tmp_path):
    names = FILES + CLUTTER
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        return tmp_path / "photos.zip"
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_stated_names(place):
    names = FileNames(place)
    assert names.names == sorted(FILES)
    assert {stated: names.find(stated) for stated in STATED} == STATED
    assert names.others == sum(found not in (None, stated) for stated, found in STATED.items())


def test_names_that_say_too_little(tmp_path):
    for name in ("x/a.jpg", "y/a.jpg", "b.jpg", "b.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = FileNames(tmp_path)
    assert names.find("/mnt/b.JPG") == "b.JPG"
    with pytest.raises(UserError, match=r"'a.jpg' may be any of x/a.jpg, y/a.jpg in"):
        names.find("a.jpg")
    with pytest.raises(UserError, match=r"'1/b.jpg' and '2/b.jpg' would both be .*b.jpg"):
        names.find_all(["1/b.jpg", "2/b.jpg"])


def test_windows_separators_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photos\\a.jpg", b"x")
    assert FileNames(tmp_path / "photos.zip").find("a.jpg") == "photos\\a.jpg"


def test_images_of_a_folder(place):
    assert list_images(place) == sorted(name for name in FILES if "/" not in name)
    assert list_images(place, ".jpg") == list_images(place)
    assert list_images(place, ".png") == []
