"""Objects365 v2: boxes, and the 1,000 images of its validation set to which DaTaSeg added masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data_modules import vocabularies
from data_modules.formats.coco_boxes import BoxReader
from data_modules.formats.coco_instances import InstanceReader
from data_modules.formats.reader import TaskName
from data_modules.layout import locate
from dataseg.io.paths import exists, inside

NOT_ON_DISK = (
    "patch16/objects365_v2_00908726.jpg",
    "patch6/objects365_v1_00320532.jpg",
    "patch6/objects365_v1_00320534.jpg",
)
"""Images of the training JSON that the archives lack (list of MMDetection)."""

_SOURCE = "https://www.objects365.org (version 2)"


class PatchFolders:
    """Finds images by the last two components of their name: archives unpack to ``patchN`` or ``images/v1/patchN``.

    Args:
        bases: folders to try, best guess first.
    """

    def __init__(self, bases: Sequence[Path]) -> None:
        middles = ("", "images/v1", "images/v2", "images")
        self._folders = [base / middle for base in bases for middle in middles]
        self._last = 0

    def __call__(self, file_name: str) -> Path:
        """The image's path; if it is nowhere, the one tried first (opening it then tells the user)."""
        name = "/".join(file_name.split("/")[-2:])
        patch = name.split("/")[0]
        for position in (self._last, *range(len(self._folders))):
            path = inside(self._folders[position], name)
            for place in (path, path.parents[1] / f"{patch}.zip" / name):
                if exists(place):
                    self._last = position  # patches come in long runs: the next image is most likely there too
                    return place
        flat = inside(self._folders[0], name.split("/")[-1])
        return flat if exists(flat) else inside(self._folders[0], name)


class Objects365Boxes(BoxReader):
    """Objects365 v2 boxes: ``{split}/zhiyuan_objv2_{split}.json`` and ``{split}/patchN/*.jpg``.

    Args:
        root: the dataset's folder, below the data root.
        annotations: JSON file below ``root``, in place of the usual one.
        images: folder of the patches below ``root``, in place of ``{split}``; ``images/v1/patchN`` is found as well.
        skip: images to leave out, by the last two components of their name.
        vocabulary: name or file of the classes.
        tasks: training uses the first. Default: instance.
        names: which names the text encoder sees: spelling mended, or as released.
    """

    title = "Objects365 v2"
    source = _SOURCE

    def __init__(
        self,
        root: str = "objects365",
        split: Literal["train", "val"] = "train",
        annotations: str | None = None,
        images: str | None = None,
        skip: Sequence[str] = NOT_ON_DISK,
        vocabulary: str = "objects365_v2_365",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.split, self.annotations, self.images = root, split, annotations, images
        self.skip = frozenset(skip)
        self._find_image = PatchFolders([])

    def locate(self, root: Path) -> None:
        name = f"zhiyuan_objv2_{self.split}.json"
        usual = [f"{self.split}/{name}", f"annotations/{name}", name]
        annotations = [(n,) for n in ([self.annotations] if self.annotations else usual)]
        images = [(self.images or self.split,)]
        (base,), (self._annotations,), (patches,) = locate(self, root, self.root, annotations, images)
        self._find_image = PatchFolders([patches, base])

    def image_path(self, file_name: str) -> Path:
        return self._find_image(file_name)


class Objects365Instances(InstanceReader):
    """The 1,000 validation images with masks: ``o365_instance_seg_val.json`` and Objects365's own images.

    Crowds, and instances whose mask was never drawn, are ignored in evaluation.

    Args:
        root: the dataset's folder, below the data root.
        annotations: JSON file below ``root``, in place of the usual one.
        images: folder of the patches below ``root``, in place of ``val``.
        vocabulary: name or file of the classes.
        tasks: evaluated tasks; training uses the first. Default: instance.
        names: which names the text encoder sees: spelling mended, or as released.
    """

    title = "DaTaSeg Objects365 instance segmentation"
    source = (
        "https://github.com/google-research-datasets/DaTaSeg-Objects365-Instance-Segmentation (the JSON) and "
        f"{_SOURCE} (the validation images)"
    )

    def __init__(
        self,
        root: str = "objects365",
        annotations: str | None = None,
        images: str | None = None,
        vocabulary: str = "objects365_v2_365",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.annotations, self.images = root, annotations, images
        self._find_image = PatchFolders([])

    def locate(self, root: Path) -> None:
        name = "o365_instance_seg_val.json"
        usual = [name, f"val/{name}", f"annotations/{name}"]
        annotations = [(n,) for n in ([self.annotations] if self.annotations else usual)]
        images = [(self.images or "val",)]
        (base,), (self._annotations,), (patches,) = locate(self, root, self.root, annotations, images)
        self._find_image = PatchFolders([patches, base])

    def image_path(self, file_name: str) -> Path:
        return self._find_image(file_name)
