"""What the readers of any COCO-style JSON with a folder of images share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_modules import vocabularies
from data_modules.annotation_index.categories import compare_categories, stated_categories
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.reader import Crowds, IndexedReader, Orientation, TaskName
from data_modules.layout import folder, locate
from dataseg.io.bands import Bands
from dataseg.io.paths import FileNames, inside
from dataseg.structures import Task, UserError


class CocoStyle(IndexedReader):
    """Looks closer at data of your own, those without a shipped vocabulary, than at official files.

    The file's categories are compared with the classes, or give them where the configuration leaves them out; images
    are found by other forms of their names; some may be held out. Goes before the class that reads the format.

    Args:
        vocabulary: name or file of the classes, or the classes themselves; None = the JSON's own categories.
        tasks: evaluated tasks; training uses the first. Default: the first of the format.
        names: which names the text encoder sees.
        hold_out: a part of the images, where there is no other file to evaluate on.
        orientation: of images: "upright" or "stored", see `Reader`; None = by the vocabulary.
        bands: of images of many bands or of fractions: which are seen, and which values are black and white.
        rest: what becomes of other classes than the vocabulary's; None = they are refused. Of maps, what their pixels
            are: "void", or one of its classes. Of boxes and masks: "background" leaves them out.
        crowds: "ignore" annotations that are marked iscrowd, as COCO's rules say, or "train" on them as on others.
    """

    _images: Path
    _found: dict[str, str]  # file name as stated -> as it is on disk, where they differ

    def __init__(
        self,
        vocabulary: vocabularies.Classes | None,
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
        hold_out: HoldOut | None = None,
        orientation: Orientation | None = None,
        bands: Bands | None = None,
        rest: str | None = None,
        crowds: Crowds = "ignore",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.hold_out, self.orientation, self.bands = hold_out, orientation, bands
        self.rest, self.crowds = rest, crowds

    def stated_classes(self) -> list[vocabularies.OwnClass]:
        return stated_categories(self._annotations)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        is_own = not vocabularies.is_shipped(self.vocabulary)
        compared = {}
        if is_own:
            with_kinds = Task.PANOPTIC in self.default_tasks  # of other files, all categories are things
            compared = compare_categories(self._annotations, self.vocabulary, with_kinds, on_problem)
        super().read(on_problem)  # type: ignore[safe-super]
        self._found = self._find(on_problem) if is_own else {}
        self.counts |= compared
        if self.hold_out is not None:
            names = [self.index.image(k).file_name for k in range(len(self))]
            kept = np.array([self.hold_out.keeps(self._found.get(name, name)) for name in names])
            if not kept.any():
                raise UserError(f"{self.title}: {self._annotations} has no image in the part {self.hold_out}")
            self._index = self.index.where(kept)

    def _find(self, on_problem: OnProblem) -> dict[str, str]:
        """The names that are other ones on disk."""
        files = FileNames(self._images)
        images = [self.index.image(k) for k in range(len(self))]
        twice = Counter(image.file_name for image in images)
        for name in [name for name, count in twice.items() if count > 1]:
            ids = ", ".join(image.id for image in images if image.file_name == name)
            on_problem(
                f"{self._annotations}: the images {ids} are all {name!r}: give all of its annotations to one of them"
            )
        try:
            found = files.find_all(list(twice))
        except UserError as error:
            raise UserError(f"{self._annotations}: {error}") from error
        missing = [name for name, file in found.items() if file is None]
        if len(missing) == len(found):
            holds = ", ".join(map(repr, files.names[:2])) or "no file"
            raise UserError(
                f"{self._annotations}: states {missing[0]!r}; none of its {len(missing)} images is in {self._images}, "
                f"which holds {holds}: set images to their folder, or mend file_name"
            )
        if missing:
            on_problem(
                f"{self._annotations}: {len(missing)} of {len(found)} images are not in {self._images}, e.g."
                f" {missing[0]!r}: put them there, or take their records out"
            )
        self.counts |= {"names_found_in_another_form": files.others, "images_missing": len(missing)}
        return {name: file for name, file in found.items() if file not in (None, name)}  # type: ignore[misc]

    def image_path(self, file_name: str) -> Path:
        found = self._found.get(file_name)
        return inside(self._images, file_name) if found is None else self._images / found


class CocoFile(CocoStyle):
    """One JSON file and one folder of images.

    Args:
        root: the dataset's folder, below the data root.
        annotations: JSON file below ``root``.
        images: image folder below ``root``.
        options: see `CocoStyle`, as ``vocabulary``.
    """

    def __init__(
        self, root: str, annotations: str, images: str, vocabulary: vocabularies.Classes | None, **options: Any
    ) -> None:
        super().__init__(vocabulary, **options)
        self.root, self.annotations, self.images = root, annotations, images
        self._images = Path()

    def locate(self, root: Path) -> None:
        wanted = [(self.annotations,)], folder(self.images)
        _, (self._annotations,), (self._images,) = locate(self, root, self.root, *wanted)
