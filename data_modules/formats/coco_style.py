"""What the readers of any COCO-style JSON with a folder of images share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from data_modules import vocabularies
from data_modules.annotation_index.categories import compare_categories, stated_categories
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.reader import IndexedReader
from dataseg.io.paths import FileNames, inside
from dataseg.structures import Task, UserError


class CocoStyle(IndexedReader):
    """Looks closer at data of your own, those without a shipped vocabulary, than at official files.

    The file's categories are compared with the classes, or give them where the configuration leaves them out; images
    are found by other forms of their names; some may be held out. Goes before the class that reads the format.
    """

    hold_out: HoldOut | None = None
    _images: Path
    _found: dict[str, str]  # file name as stated -> as it is on disk, where they differ

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
