r"""Predict on images of one's own: an overlay of each, and all segments in one JSON file.

    dataseg predict --model runs/mini_all/version_0/checkpoints/best.ckpt --dataset coco \
        --images photos --out predictions
    dataseg predict --model model.safetensors --classes cat,dog --task instance --images a.jpg b.jpg --out out

The model is a run's checkpoint (see `dataseg.deployment.from_run`) or what `dataseg.load` takes.
``<out>/predictions.json`` names its fields as COCO's files do: ``images`` is a list of ``file_name``, ``height``,
``width``, ``picture`` and ``segments``; a segment has ``category`` (name), ``category_id``, ``score`` (but for the
semantic task), ``area``, ``bbox`` (x, y, width, height) and ``segmentation`` (run lengths, for pycocotools.mask), in
pixels of the image as it is shown, turned upright by its EXIF orientation. Pictures leave out instances of low score.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pycocotools import mask as mask_tools
from rich.console import Console
from rich.progress import track

from dataseg.checkpoint.load import is_run
from dataseg.config.instantiate import instantiate
from dataseg.deployment.from_run import predictor_of
from dataseg.deployment.predictor import Predictor, load, vocabulary_of_names
from dataseg.deployment.registry import PACKAGES
from dataseg.io.bands import Bands
from dataseg.io.images import open_image, write_png
from dataseg.io.rle import encode_mask, rle_to_json
from dataseg.prediction_files import write_json
from dataseg.structures import SegmentMap, Segments, Task, UserError, Vocabulary
from dataseg.text.encoder import TextEncoder
from dataseg.visualization.overlay import confident, draw

RESULT = "predictions.json"
SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"),
    *(".gif", ".avif", ".heic", ".heif"),  # which OpenCV reads or not: then they are named, not passed over
)
"""Endings of what is taken from a folder."""


def predict(
    predictor: Predictor,
    images: dict[str, Path],
    vocabulary: Vocabulary,
    task: Task,
    out: Path,
    batch_size: int = 4,
    progress: bool = False,
    bands: Bands | None = None,
) -> tuple[int, list[str]]:
    """Write a picture of each image as ``<out>/<name>.png``, then ``<out>/predictions.json``.

    Args:
        predictor: the model.
        images: files by name, see `find_images`.
        vocabulary: the classes.
        task: what is predicted.
        out: folder, made if it is missing.
        batch_size: images that are read at a time; those of one size go through the network together.
        progress: show a bar.
        bands: what is seen of images that do not say so by themselves.

    Returns:
        Number of segments; and a message for each image that could not be read, which is left out.

    Raises:
        UserError: names without vectors, and no encoder.
    """
    records, problems = [], []
    files = list(images.items())
    parts = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for part in track(parts, "predicting", console=Console(stderr=True), disable=not progress):
        pictures: dict[str, Any] = {}
        for name, path in part:
            try:
                pictures[name] = open_image(path, upright=True, bands=bands).decode()
            except UserError as error:
                problems.append(str(error))
        results = predictor(list(pictures.values()), vocabulary, task, batch_size=batch_size)
        for (name, image), result in zip(pictures.items(), results, strict=True):
            segments, picture = result.to("cpu"), f"{name}.png"
            write_png(out / picture, draw(image, confident(segments), vocabulary, is_prediction=True))
            size = {"height": image.shape[0], "width": image.shape[1]}
            records.append({"file_name": name, **size, "picture": picture, "segments": describe(segments, vocabulary)})
    write_json(out / RESULT, {"task": task, "vocabulary": vocabulary.name, "images": records})
    return sum(len(record["segments"]) for record in records), problems


def describe(segments: Segments, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """JSON-able records, in the order of the prediction; their fields stand at the top of this module."""
    scores = [{}] * len(segments) if segments.scores is None else [{"score": s} for s in segments.scores.tolist()]
    records = []
    for label, rle, score in zip(segments.labels.tolist(), _rles(segments), scores, strict=True):
        spec = vocabulary.classes[label]
        extent = {"area": int(mask_tools.area(rle)), "bbox": [int(v) for v in mask_tools.toBbox(rle)]}
        names = {"category": spec.name, "category_id": spec.id}
        records.append({**names, **score, **extent, "segmentation": rle_to_json(rle)})
    return records


def _rles(segments: Segments) -> Iterator[dict[str, Any]]:
    """One by one: hundreds of masks of a large image would not fit into memory."""
    if isinstance(segments, SegmentMap):
        for k in range(len(segments)):
            yield encode_mask((segments.ids == k).numpy())
    else:
        yield from (rle for rle in segments.rles if rle is not None)  # only ground truth lacks masks


def find_images(sources: Sequence[Path], out: Path) -> dict[str, Path]:
    """Image files by name: a file's own, or its path below the folder that it was found in.

    Args:
        sources: files, and folders that are searched to any depth; hidden files are passed over, as is ``out``.
        out: where results go.

    Raises:
        UserError: a source is missing, empty, or lies in ``out``; or two images have one name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise UserError(f"{source}: no such image or folder of images")
        if source.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{source} lies in the folder {out}, to which pictures are written: take another --out")
        files = _images_in(source, out) if source.is_dir() else [source]
        if not files:
            raise UserError(f"{source}: holds no image ({', '.join(SUFFIXES)})")
        for path in files:
            name = path.relative_to(source).as_posix() if source.is_dir() else path.name
            if name in found:
                raise UserError(f"{found[name]} and {path} are both named {name}: predict them in two runs")
            found[name] = path
    return found


def _images_in(folder: Path, out: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.resolve().is_relative_to(out.resolve())
    ]


# --------------------------------------------------------------------------------------------------- command line


ENCODER = (
    "makes text vectors of class names that the model has none of, as model.text.encoder of an experiment: a class, or"
    " YAML, e.g. '{class_path: dataseg.text.OpenClipText, init_args: {pretrained: clip.pt}}'; default: a run's own"
)


def load_model(source: str, encoder: str | None = None, packages: Sequence[str] = ()) -> Predictor:
    """The predictor of a run's checkpoint, or of what `dataseg.load` takes.

    Args:
        source: path, or ``hf://owner/name``.
        encoder: see `ENCODER`.
        packages: see `dataseg.load`.

    Raises:
        UserError: as `dataseg.load`; or no such encoder.
    """
    made = None if encoder is None else _encoder(encoder)
    if is_run(Path(source)):
        return predictor_of(Path(source), made, tuple(packages))
    return load(source, encoder=made, packages=packages)


def _encoder(text: str) -> TextEncoder:
    try:
        section = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--encoder: cannot be read as YAML ({error})") from error
    if not isinstance(section, str | dict):
        raise UserError(f"--encoder: takes a class, or class_path with init_args, got {text!r}")
    section = {"class_path": section} if isinstance(section, str) else section
    encoder: TextEncoder = instantiate(TextEncoder, section, "--encoder")
    return encoder


def _of_data_set(predictor: Predictor, name: str | None) -> Vocabulary:
    known = predictor.vocabularies
    if name is None and len({vocabulary.digest for vocabulary in known.values()}) > 1:
        raise UserError(f"the model knows several datasets: choose --dataset, one of {sorted(known)}, or --classes")
    return predictor.vocabulary(name or next(iter(known)))


def device_of(name: str | None) -> torch.device:
    """The device of a name; None = a GPU if there is one.

    Raises:
        UserError: it is unknown or not there.
    """
    try:
        return torch.zeros(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # what torch raises for one that is unknown or not there
        raise UserError(f"no device {name!r} ({str(error).splitlines()[0]})") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dataseg predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="*.ckpt of a run, *.safetensors, or hf://owner/name")
    parser.add_argument("--images", required=True, type=Path, nargs="+", help="files, or folders to search")
    parser.add_argument("--out", required=True, type=Path, help=f"folder for the pictures and {RESULT}")
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--dataset", help="whose classes; may be left out if the model knows one dataset")
    classes.add_argument("--classes", help="in place of a dataset's, e.g. cat,dog,sky")
    parser.add_argument("--stuff", help="those of --classes that are not countable, e.g. sky")
    parser.add_argument(
        "--task", choices=[t.value for t in Task], default=Task.PANOPTIC.value, help="default: panoptic"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images at a time; default: 4")
    parser.add_argument("--bands", type=int, nargs="+", help="of images of many bands or of fractions: e.g. 4 3 2")
    parser.add_argument("--value-range", type=float, nargs=2, help="of --bands: what is black and what is white")
    parser.add_argument("--encoder", help=ENCODER)
    parser.add_argument("--packages", nargs="*", default=[], help=PACKAGES)
    parser.add_argument("--device", help="default: a GPU if there is one")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0, or 1 if images could not be read."""
    problems = _run(_parser().parse_args(arguments))
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _run(options: argparse.Namespace) -> list[str]:
    out: Path = options.out
    images, device = find_images(options.images, out), device_of(options.device)
    if (options.bands is None) != (options.value_range is None):
        raise UserError("--bands and --value-range go together: which bands are seen, and which values of them")
    bands = Bands(options.bands, tuple(options.value_range)) if options.bands else None
    named = None
    if options.classes is not None:
        named = vocabulary_of_names(_split(options.classes), _split(options.stuff or ""))
    elif options.stuff is not None:
        raise UserError("--stuff says which of --classes are not countable; a dataset says so itself")
    predictor = load_model(options.model, options.encoder, options.packages).to(device)
    vocabulary = named or _of_data_set(predictor, options.dataset)
    predictor.classes(vocabulary)  # names without vectors are found before anything is written
    out.mkdir(parents=True, exist_ok=True)
    count, problems = predict(
        predictor, images, vocabulary, Task(options.task), out, max(1, options.batch_size), sys.stderr.isatty(), bands
    )
    done = f"{len(images) - len(problems)} of {len(images)} images"
    print(f"{out / RESULT}: {options.task}, {count} segments in {done}, their pictures beside it")
    return problems


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")] if names else []
