"""Look at a folder of your own images and annotations, and write the experiment that trains on them.

``dataseg own-data FOLDER [--name NAME]``

Recognises exports of labelling tools, COCO-style JSON, label maps and folders of masks by what the files hold. Writes
``conf/exp/NAME.yaml``: reader, classes, a validation part (held out by a hash of the images' names if the folder knows
none), sizes and a small network, and says what it found.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from data_modules import formats
from data_modules.formats.label_maps import IGNORE
from data_modules.formats.labelling_tool import LabellingTool
from data_modules.formats.reader import IndexedReader, Reader
from data_modules.formats.yolo import read_data_yaml
from data_modules.inspection.statistics import describe
from data_modules.layout import MissingDataError
from data_modules.survey import evenly_spaced, survey
from data_modules.vocabularies import OwnClass
from dataseg.io.atomic import write_text
from dataseg.io.images import color_codes, read_colors, read_labels
from dataseg.io.json_files import read_json
from dataseg.io.paths import IMAGE_SUFFIXES, list_images, read_bytes, walk
from dataseg.io.xml_files import read_xml
from dataseg.structures import UserError

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Words in names of files and folders that say which part they hold."""
SHARES = (0.2, 0.3, 0.4, 0.5, 0.1, 0.6, 0.7, 0.8, 0.9)
"""Of the images that are held out for validation, in order of preference."""
MAX_CLASSES = 256
"""Values of a label map; more are no classes."""
_LABELS = re.compile(r"label|mask|annot|gt|seg|truth", re.IGNORECASE)
_LARGE = 64 << 20  # bytes of a JSON that only COCO-style tools write
_LOOKED_AT = 200  # images, where only their files say what they hold


@dataclass
class Found:
    """Annotations that a reader may serve.

    Attributes:
        kind: name of the reader in `data_modules.formats`.
        where: file or folder below the folder that was looked at.
        arguments: of the reader, but ``root`` and ``images``.
        needs_images: whether the reader is told the image folder.
    """

    kind: str
    where: str
    arguments: dict[str, Any] = field(default_factory=dict)
    needs_images: bool = True

    @property
    def part(self) -> str | None:
        """Train, val or test, if its name says so."""
        words = re.split(r"[^a-z]+", self.where.lower().replace(str(self.arguments.get("part", "")), ""))
        stated = self.arguments.get("part")
        return stated or next((part for part, names in PARTS.items() if set(names) & set(words)), None)


def recognise(folder: Path, form: str | None = None) -> tuple[list[Found], list[Found]]:
    """All annotations in a folder of one form, and those of others.

    Args:
        form: name of a reader, where there are several; None = what files hold goes before what folders hold.

    Raises:
        UserError: none that is known or wanted, or files of several forms.
    """
    names = walk(folder)
    of_files = _grouped(folder, [item for name in names for item in _of_file(folder, name)])
    of_folders = list(_folders(folder, names))
    found = [item for item in of_files + of_folders if item.kind == form] if form else of_files or of_folders
    others = [item for item in of_files + of_folders if item not in found]
    kinds = Counter(item.kind for item in found)
    if not found and others:
        there = ", ".join(dict.fromkeys(item.kind for item in others))
        raise UserError(f"{folder}: no annotations of the form {form}, but {there}")
    if not found:
        endings = Counter(PurePosixPath(name).suffix.lower() for name in names)
        listed = ", ".join(f"{count} {ending or '(no ending)'}" for ending, count in endings.most_common(6))
        raise UserError(
            f"{folder}: no annotations of a known form among its files ({listed or 'none'}): wanted are YOLO with its "
            "data.yaml or classes.txt, labelme, Pascal VOC, CVAT for images 1.1, Label Studio's JSON, VIA, COCO-style "
            "JSON, label maps or folders of masks, see docs/own_data.md"
        )
    if len(kinds) > 1:
        several = "; ".join(f"{kind}: {next(i.where for i in found if i.kind == kind)}" for kind in kinds)
        raise UserError(f"{folder}: annotations of several forms ({several}): choose one with --form")
    return found, others


def _of_file(folder: Path, name: str) -> Iterator[Found]:
    path, suffix = folder / name, PurePosixPath(name).suffix.lower()
    if suffix in (".yaml", ".yml"):
        about = read_data_yaml(path)
        if "names" in about:
            parts = [part for part in PARTS if about.get(part)]
            yield from (Found("Yolo", name, {"annotations": name, "part": part}, needs_images=False) for part in parts)
    elif path.name.lower() in ("classes.txt", "obj.names"):
        yield Found("Yolo", name, {"annotations": name}, needs_images=False)
    elif suffix == ".xml":
        kind = {"annotations": "CvatImages", "annotation": "PascalVocBoxes"}.get(read_xml(path).tag)
        if kind:
            yield Found(kind, name, {"annotations": name})
    elif suffix == ".csv" and b"region_shape_attributes" in read_bytes(path)[:1000]:
        yield Found("Via", name, {"annotations": name})
    elif suffix == ".json":
        kind = "CocoInstances" if path.stat().st_size > _LARGE else _kind_of_json(read_json(path))
        if kind:
            yield Found(kind, name, {"annotations": name})


def _kind_of_json(content: Any) -> str | None:
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        return "LabelStudio" if {"data", "lead_time", "annotation_id"} & first.keys() else None
    if not isinstance(content, dict):
        return None
    if "shapes" in content and "imagePath" in content:
        return "Labelme"
    if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        records = [record for record in content["annotations"] if isinstance(record, dict)]
        if any("segments_info" in record for record in records):
            return "CocoPanoptic"
        return "CocoInstances" if any(record.get("segmentation") for record in records) else "CocoBoxes"
    records = list(content.get("_via_img_metadata", content).values())
    return "Via" if records and all(isinstance(r, dict) and "regions" in r for r in records) else None


def _grouped(folder: Path, found: list[Found]) -> list[Found]:
    """Forms with a file per image: one entry for all, or one per list or folder of a part."""
    kinds = {item.kind for item in found}
    if "Labelme" in kinds:
        return _by_folder("Labelme", [i for i in found if i.kind == "Labelme"]) + [
            i for i in found if i.kind != "Labelme"
        ]
    if "PascalVocBoxes" not in kinds:
        return found
    files = [item for item in found if item.kind == "PascalVocBoxes"]
    sets = [name for name in walk(folder) if name.endswith(".txt") and "ImageSets/Main/" in f"{name}"]
    whole = _by_folder("PascalVocBoxes", files)
    listed = [
        Found("PascalVocBoxes", name, {**whole[0].arguments, "image_set": name})
        for name in sets
        if len(whole) == 1 and PurePosixPath(name).stem in ("train", "val", "test")
    ]
    return (listed or whole) + [item for item in found if item.kind != "PascalVocBoxes"]


def _by_folder(kind: str, files: list[Found]) -> list[Found]:
    """One entry per folder of a part, else one for the folder that holds them all."""
    folders = sorted({str(PurePosixPath(item.where).parent) for item in files})
    entries = [Found(kind, name, {"annotations": name}) for name in folders]
    if len(entries) == 1 or all(entry.part for entry in entries):
        return entries
    common = PurePosixPath(folders[0])
    while not all(PurePosixPath(name).is_relative_to(common) for name in folders):
        common = common.parent
    return [Found(kind, str(common), {"annotations": str(common)})]


def _folders(folder: Path, names: list[str]) -> Iterator[Found]:
    """Label maps, and folders of masks: two folders whose files or folders have the same names."""
    stems: dict[str, set[str]] = {}
    for name in names:
        if _is_image(name):
            path = PurePosixPath(name)
            stems.setdefault(str(path.parent), set()).add(path.stem)
    for images, mine in stems.items():
        below = [other for other in stems if other != images and PurePosixPath(other).name in mine]
        parents = {str(PurePosixPath(other).parent) for other in below}
        if len(parents) == 1:
            yield Found("MaskFolders", (masks := parents.pop()), {"masks": masks, "images": images}, needs_images=False)
        for labels, others in stems.items():
            tail = None if labels == images else _tail(mine, others)
            if tail is not None and (encoding := _encoding(folder, labels, names)):
                if not _encoding(folder, images, names) or (_LABELS.search(labels) and not _LABELS.search(images)):
                    arguments = {"annotations": labels, "images": images}
                    arguments |= {"labels_suffix": f"{tail}.png"} if tail else {}
                    arguments |= {"encoding": encoding} if encoding == "colors" else {}
                    yield Found("LabelMaps", labels, arguments, needs_images=False)


def _tail(images: set[str], labels: set[str]) -> str | None:
    """What stands behind the images' stems in those of their label maps; None if they are not theirs."""
    first = min(labels)
    tails = [first[len(stem) :] for stem in images if first.startswith(stem)]
    fits = (tail for tail in sorted(tails, key=len) if 2 * sum(stem + tail in labels for stem in images) > len(images))
    return next(fits, None)


def _encoding(folder: Path, place: str, names: list[str]) -> str | None:
    """How a folder's first file would hold classes; None if it is a photograph."""
    first = next(name for name in names if str(PurePosixPath(name).parent) == place)
    if PurePosixPath(first).suffix.lower() not in (".png", ".tif", ".tiff"):
        return "ids" if _LABELS.search(place) else None  # the reader refuses it
    for encoding in ("ids", "colors"):
        try:
            if len(_values(folder / first, encoding)) <= MAX_CLASSES:
                return encoding
        except UserError:  # classes are stored as colours, or the reader will say what it is
            continue
    return None


def _values(path: Path, encoding: str) -> list[int]:
    """Of a label map: ids, or colour codes."""
    values = read_labels(path, "", None) if encoding == "ids" else color_codes(read_colors(path, "", None)) & 0xFFFFFF
    return np.unique(values).tolist()  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------- readers


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def image_folders(folder: Path, part: str | None) -> list[str]:
    """Folders that may hold the images: those named after the part first, then the deepest; the folder itself last."""
    below: Counter[str] = Counter()
    for name in walk(folder):
        if _is_image(name):
            below.update(str(parent) for parent in PurePosixPath(name).parents)
        elif name.lower().endswith(".zip") and (count := sum(map(_is_image, walk(folder / name)))):
            below[name[: -len(".zip")]] += count  # readers look into the archive in a folder's place
    words = PARTS.get(part or "", ())
    return sorted(below, key=lambda n: (not any(w in n.lower().split("/") for w in words), n == ".", -below[n]))


def build(folder: Path, found: Found, classes: list[OwnClass] | None) -> tuple[Reader, dict[str, Any]]:
    """The reader that finds its images, set up, and its arguments as they stand in a YAML file.

    Of several image folders that would do, the one where most names are found as they are stated.

    Raises:
        UserError: it does not: the message for the likeliest image folder.
    """
    kind = getattr(formats, found.kind)
    places = [{"images": name} for name in image_folders(folder, found.part)] if found.needs_images else [{}]
    both = issubclass(kind, LabellingTool) and kind is not formats.PascalVocBoxes
    targets = [{"targets": "masks"}, {"targets": "boxes"}] if both else [{}]
    errors: list[Exception] = []
    best: tuple[int, Reader, dict[str, Any]] | None = None
    for place, target in itertools.product(places or [{"images": "."}], targets):
        arguments = {"root": folder.absolute().name, **found.arguments, **place, **target}
        reader = kind(**arguments, vocabulary=classes)
        try:
            reader.setup(folder.absolute().parent)
        except (UserError, MissingDataError) as error:
            errors.append(error)
            continue
        if target.get("targets") == "masks" and 2 * reader.counts["without_mask"] > len(reader.index.all("label")):
            continue
        others = reader.counts.get("names_found_in_another_form", 0)
        if best is None or others < best[0]:
            best = others, reader, arguments
        if not others:
            break
    if best is not None:
        return best[1:]
    raise UserError(f"{found.kind}: {errors[0]}") from errors[0]


@dataclass
class Plan:
    """What the experiment is to be.

    Attributes:
        train, val: readers as they stand in a YAML file; None = nothing can be scored.
        image_size: side of the training crops, pixels.
        lines: what was found, for people.
    """

    train: dict[str, Any]
    val: dict[str, Any] | None
    image_size: int
    lines: list[str]


def plan(folder: Path, form: str | None = None) -> Plan:
    """Recognise a folder and set up its readers.

    Args:
        form: name of a reader, where annotations of several forms are there.

    Raises:
        UserError: the folder is not there, holds nothing that is known, or something in it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder" + (", but a file: unpack it" if folder.is_file() else ""))
    by_part: dict[str | None, Found] = {}
    found, others = recognise(folder, form)
    for item in found:
        if (other := by_part.setdefault(item.part, item)) is not item:
            raise UserError(
                f"{folder}: {other.where} and {item.where} both hold annotations: give a folder with one of them, or"
                " name them after their parts: train, val"
            )
    train = by_part.get("train") or by_part.get(None) or next(iter(by_part.values()))
    held = (by_part.get(part) for part in ("val", "test"))
    val = next((item for item in held if item is not None and item is not train), None)
    reader, arguments = build(folder, train, _named_classes(folder, train))
    has_colors = arguments.get("encoding") == "colors"
    own_classes = [
        OwnClass(c.name, c.id, "thing" if c.is_thing else "stuff", color=c.color if has_colors else None)
        for c in reader.vocabulary.classes
    ]
    classes = [
        {
            "name": c.name,
            "id": c.id,
            **({"kind": c.kind} if c.kind == "stuff" else {}),
            **({"color": list(c.color)} if c.color else {}),
        }
        for c in own_classes
    ]
    lines = [f"{reader.title}: {train.where}", *_told(reader, "train")]
    lines += [f"  not used: {item.where} (as {item.kind}, with --form {item.kind})" for item in others]
    if val is None and reader.gives == "boxes":  # nothing is scored
        parts = [arguments, arguments]
    elif val is None:
        share = _share(reader)
        if share is None:
            raise UserError(f"{folder}: {len(reader)} images are too few to hold some with objects out for validation")
        lines.append(f"validation: {len(_held_out(reader, share))} of them, held out by a hash of their names")
        parts = [arguments | {"hold_out": {"part": part, "share": share}} for part in ("train", "val")]
    else:
        val_reader, val_arguments = build(folder, val, own_classes)
        lines += [f"validation: {val.where}", *_told(val_reader, "val")]
        parts = [arguments, val_arguments]
    if reader.gives == "boxes":
        lines.append("boxes are trained on, but no score here is of boxes: look at the pictures of make predict")
    of_train, of_val = (
        {"class_path": f"data_modules.formats.{train.kind}", "init_args": part | {"vocabulary": classes}}
        for part in parts
    )
    return Plan(of_train, None if reader.gives == "boxes" else of_val, _typical_size(reader), lines)


def _named_classes(folder: Path, found: Found) -> list[OwnClass] | None:
    """Of the forms whose files list none."""
    if found.kind == "LabelMaps":
        place, encoding = folder / found.arguments["annotations"], found.arguments.get("encoding", "ids")
        values = sorted({value for name in list_images(place) for value in _values(place / name, encoding)})
        if encoding == "ids":
            values = values if values == [0, IGNORE] else [value for value in values if value != IGNORE]
            return [OwnClass(f"class {value}", value, "stuff") for value in values]
        colors = [(code & 255, code >> 8 & 255, code >> 16) for code in values]
        return [OwnClass(f"color {r} {g} {b}", k, "stuff", color=(r, g, b)) for k, (r, g, b) in enumerate(colors)]
    if found.kind == "MaskFolders":
        stems = {PurePosixPath(name).stem for name in walk(folder / found.arguments["masks"])}
        names = sorted({re.sub(r"[_\-. ]*\d*$", "", stem) or stem for stem in stems})
        return [OwnClass(name, number) for number, name in enumerate(names, 1)]
    return None


def _held_out(reader: Reader, share: float) -> list[int]:
    names = [
        reader.index.image(k).file_name if isinstance(reader, IndexedReader) else reader.image_id(k) + ".png"
        for k in range(len(reader))
    ]
    return [k for k, name in enumerate(names) if formats.HoldOut("val", share).keeps(name)]


def _share(reader: Reader) -> float | None:
    """Of the images to be held out: the first of `SHARES` that leaves every class on both sides, else objects."""
    if isinstance(reader, IndexedReader):
        classes = [set(reader.index.column(k, "label").tolist()) for k in range(len(reader))]
    else:
        classes = [{0}] * len(reader)

    def least(share: float) -> int:
        """Classes on the side that has fewer."""
        held = set(_held_out(reader, share))
        sides: tuple[set[int], set[int]] = set(), set()
        for k, found in enumerate(classes):
            sides[k in held].update(found)
        return min(map(len, sides))

    best = max(SHARES, key=least)  # the first of those that are as good
    return best if least(best) else None


def _told(reader: Reader, name: str) -> list[str]:
    """Counts of images, objects by class and everything that reading dropped or mended, or that is doubtful."""
    heard: list[str] = []
    survey(reader, lambda message, benign=False: heard.append(f"  {message}"))
    found = describe(reader, name, _LOOKED_AT)
    classes = ", ".join(f"{c} {n}" for c, n in zip(reader.vocabulary.names, found.per_class.tolist(), strict=True))
    of = f" of {found.counted} of them" if found.counted < found.images else ""
    lines = [f"{found.images} images; segments by class{of}: {classes}"]
    return lines + [f"  {counted}" for counted in reader.counted] + heard


def _typical_size(reader: Reader) -> int:
    """Median of the longer sides, a multiple of 32 from 128 to 512: what the small network is quick with."""
    sides = [max(reader.load(k)[0].shape[:2]) for k in evenly_spaced(len(reader), 16)]
    return int(np.clip(32 * round(float(np.median(sides)) / 32), 128, 512))


def experiment_yaml(name: str, folder: Path, plan: Plan) -> str:
    """The experiment's file, to lie in ``conf/exp``."""
    size = plan.image_size
    arguments = {
        "root": os.path.relpath(folder.absolute().parent),
        "train": {name: plan.train},
        **({"val": {name: plan.val}} if plan.val else {}),
        "ratios": {name: 1},
        "train_transform": {"image_size": size, "scale_range": [0.5, 1.5]},
        "eval_transform": {"size": size, "max_size": size},  # the longer side, as in training
        "batch_size": 8,
    }
    content = {"extends": "../own.yaml", "model": {"classifier": "learnt"}, "data": {"init_args": arguments}}
    if plan.val is None:
        content["trainer"] = {"limit_val_batches": 0}
    found = "\n".join(f"#        {line}" for line in plan.lines)
    head = f"# Run:   make train EXP={name}\n# Found: in {folder}\n{found}\n"
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return head + text


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML ships no types
    """Repeats what stands twice, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dataseg own-data", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with images and their annotations")
    parser.add_argument("--name", help="of the experiment; default: the folder's")
    parser.add_argument("--form", help="reader, where annotations of several forms are there, e.g. LabelMaps")
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="folder of the configuration files")
    parser.add_argument("--overwrite", action="store_true", help="replace an experiment of this name")
    given = parser.parse_args(args)
    name = given.name or re.sub(r"\W+", "_", given.folder.absolute().name).lower()
    path = given.conf / "exp" / f"{name}.yaml"
    if path.exists() and not given.overwrite:
        raise UserError(f"{path} is there already: give another --name, or --overwrite")
    found = plan(given.folder, given.form)
    write_text(path, experiment_yaml(name, given.folder, found))
    print("\n".join([*found.lines, f"wrote {path}: look through it, then"]))
    print(f"  make data-check EXP={name}    or: dataseg data-check --exp {name}")
    print(f"  make train EXP={name}         or: dataseg fit --exp {name}")
    return 0
