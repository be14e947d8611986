"""The training pipeline against the usual way with binary masks, and the index of Objects365's training set.

    python benchmarks/data.py --coco /path/to/coco --big /tmp/big.json --tenth /tmp/tenth.json
    python benchmarks/data.py --coco ../shared/data/coco --only pipeline --dry-run

Pipeline: COCO images and panoptic PNGs from disk to augmented tensors of 640 x 640 on one core, large-scale jitter 0.1
to 2.0, crop and flip. The usual way, that of EoMT for one, makes one binary mask a segment and takes image and masks
through torchvision's v2 transforms: flip, resize, pad, crop. All get the same windows, scales and flips and have to end
with the same segments: pixel by pixel where torchvision cuts the window first, which is not the usual order but the
quicker one (a sample on the very edge of two pixels may take either), and nearly so where it resizes first and so
rounds the window's corner. Images differ by the interpolation.

Index: an annotation file of 1.74 million images and 25 million boxes, written by `make_objects365.py` if it is not
there. Each figure is taken in a process of its own; peak memory is all of it, imported libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import make_objects365
import numpy as np
import torch
from _common import Report, ratio, side_by_side
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from data_modules.datasets import TrainDataset
from data_modules.formats import CocoPanoptic
from data_modules.transforms import TrainTransform
from dataseg.io.images import open_image, read_rgb_ids
from dataseg.structures import Batch, Sample, SegmentMap, Task

Key = tuple[int, int]
"""Index and seed of a sample."""
SIZE = 640
MEAN_RGB = (124, 116, 104)
SCALES = (0.1, 2.0)


@dataclass
class Plan:
    """What our transform draws for a sample, for the others to do the same.

    Attributes:
        window: top, left, height, width of the window in the image on disk.
        out: rows and columns that it becomes.
        resized: rows and columns that the whole image becomes at this scale.
        corner: top and left of the window in that, mirrored if it is.
        flipped: mirrored afterwards.
    """

    window: tuple[int, int, int, int]
    out: tuple[int, int]
    flipped: bool
    size: tuple[int, int]

    @property
    def resized(self) -> tuple[int, int]:
        scales = [out / taken for out, taken in zip(self.out, self.window[2:], strict=True)]
        return round(self.size[0] * scales[0]), round(self.size[1] * scales[1])

    @property
    def corner(self) -> tuple[int, int]:
        where = zip(self.window, self.resized, self.size, self.out, strict=False)
        top, left = (min(round(start * big / whole), big - out) for start, big, whole, out in where)
        return top, self.resized[1] - self.out[1] - left if self.flipped else left


class Masks:
    """The usual way: decode, one mask a segment, flip, resize, pad, crop; then empty masks are dropped.

    Args:
        lean: our readers, ids of 32 bits and masks of uint8, which torchvision resizes quicker. Otherwise as EoMT
            (github.com/tue-mps/eomt, 2026-07) does: Pillow's decoders, ids of 64 bits, those that occur, masks of bool.
        cut_first: cut the window before resizing it, where the usual order resizes all of it first.
    """

    def __init__(self, root: Path, split: str, lean: bool, cut_first: bool) -> None:
        base = root / "annotations" / f"panoptic_{split}"
        content = json.loads(base.with_suffix(".json").read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        self.lean, self.cut_first = lean, cut_first
        self.samples = [
            (root / split / names[a["image_id"]], base / a["file_name"], a["segments_info"])
            for a in content["annotations"]
        ]

    def __call__(self, index: int, plan: Plan) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Image ``[3, 640, 640]``, masks ``[K, 640, 640]`` and the category of each."""
        image_path, labels_path, segments = self.samples[index]
        image, ids = self._read(image_path, labels_path)
        segments = [s for s in segments if not s["iscrowd"]]
        if not self.lean:
            present = set(ids.unique().tolist())
            segments = [s for s in segments if s["id"] in present]
        found = torch.stack([ids == s["id"] for s in segments])
        masks = tv_tensors.Mask(found.to(torch.uint8) if self.lean else found)
        moved = [self._move(part, plan) for part in (tv_tensors.Image(image), masks)]
        kept = moved[1].flatten(1).any(1).bool()
        categories = [s["category_id"] for s, keep in zip(segments, kept.tolist(), strict=True) if keep]
        return moved[0], moved[1][kept], categories

    def _read(self, image_path: Path, labels_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Image, uint8 ``[3, H, W]``, and segment ids ``[H, W]``."""
        if self.lean:
            image = torch.from_numpy(open_image(image_path, "lean").decode())
            ids = read_rgb_ids(labels_path, "lean", (image.shape[0], image.shape[1])) & 0xFFFFFF
            return image.permute(2, 0, 1).contiguous(), torch.from_numpy(ids.view(np.int32))
        with Image.open(image_path) as file:
            pixels = functional.pil_to_tensor(file.convert("RGB"))
        with Image.open(labels_path) as file:
            colors = functional.pil_to_tensor(file.convert("RGB")).to(torch.int64)
        return pixels, colors[0] + 256 * colors[1] + 65536 * colors[2]

    def _move(self, part: Any, plan: Plan) -> Any:
        is_mask = isinstance(part, tv_tensors.Mask)
        mode = v2.InterpolationMode.NEAREST_EXACT if is_mask else v2.InterpolationMode.BILINEAR
        fill = 0 if is_mask else list(MEAN_RGB)
        if self.cut_first:
            part = functional.crop(part, *plan.window)
            part = functional.resize(part, list(plan.out), interpolation=mode, antialias=True)
            part = functional.horizontal_flip(part) if plan.flipped else part
            return functional.pad(part, [0, 0, SIZE - plan.out[1], SIZE - plan.out[0]], fill=fill)
        part = functional.horizontal_flip(part) if plan.flipped else part
        part = functional.resize(part, list(plan.resized), interpolation=mode, antialias=True)
        missing = [max(0, SIZE - n) for n in plan.resized]
        part = functional.pad(part, [0, 0, missing[1], missing[0]], fill=fill)
        return functional.crop(part, *plan.corner, SIZE, SIZE)


def our_targets(target: SegmentMap, reader: CocoPanoptic) -> tuple[torch.Tensor, list[int]]:
    """As masks ``[K, 640, 640]`` and official categories."""
    masks = torch.zeros(len(target), SIZE, SIZE, dtype=torch.bool)
    for k, mask in enumerate(masks):
        mask[: target.size[0], : target.size[1]] = target.ids == k
    return masks, [reader.vocabulary.classes[k].id for k in target.labels.tolist()]


def on_edges(plan: Plan) -> torch.Tensor:
    """Pixels of the result that are sampled on the edge of two source pixels, where libraries may take either."""
    edges = []
    for axis in (0, 1):
        place = (np.arange(SIZE) + 0.5) * plan.window[2 + axis] / plan.out[axis]
        edge = np.abs(place - np.round(place)) < 1e-3
        if axis and plan.flipped:
            edge[: plan.out[1]] = edge[: plan.out[1]][::-1].copy()
        edges.append(torch.from_numpy(edge))
    return edges[0][:, None] | edges[1][None]


def require_equal(view: TrainDataset, contenders: dict[str, Masks], keys: list[Key], plans: list[Plan]) -> None:
    """Stop unless all end with the same segments."""
    reader = view.reader
    assert isinstance(reader, CocoPanoptic)
    for (index, seed), plan in zip(keys, plans, strict=True):
        target = view[index, seed].target
        assert isinstance(target, SegmentMap)
        masks, categories = our_targets(target, reader)
        for name, run in contenders.items():
            _, others, other_categories = run(index, plan)
            if run.cut_first:
                same = categories == other_categories and not ((masks != others.bool()).any(0) & ~on_edges(plan)).any()
            else:
                same = float((masks.any(0) == others.bool().any(0)).float().mean()) > 0.97
            if not same:
                raise SystemExit(f"{name}: image {index}, seed {seed}: other segments than ours")


def bench_pipeline(report: Report, root: Path, split: str, seeds: int, repeats: int) -> None:
    view, keys, plans, masks = _setting(root, split, seeds)
    require_equal(view, masks, keys, plans)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        turns = list(pool.map(one_turn, *zip(*[(root, split, seeds)] * repeats, strict=True)))
    seconds = {name: [turn[name] for turn in turns] for name in turns[0]}
    rates = {name: [len(keys) / s for s in runs] for name, runs in seconds.items()}
    report.add_medians("training pipeline, images a second on one core", rates)
    ratios = {
        "pipeline_vs_masks": ("masks", "time of binary masks as EoMT makes them / ours"),
        "pipeline_vs_lean_masks": ("lean masks", "the same with our readers, ids of 32 bits, masks of uint8"),
        "pipeline_vs_lean_masks_cut_first": ("lean masks, cut first", "and with the window cut before the resizing"),
    }
    for name, (contender, meaning) in ratios.items():
        report.add(name, ratio(seconds[contender], seconds["ours"]), meaning)


def one_turn(root: Path, split: str, seeds: int) -> dict[str, float]:
    """Seconds of each contender, in a process of its own: what a process has freed before decides what memory costs."""
    use_one_core()
    view, keys, plans, masks = _setting(root, split, seeds)
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: [padded(view[key]) for key in keys]}
    for name, way in masks.items():
        contenders[name] = lambda way=way: [way(k[0], plan) for k, plan in zip(keys, plans, strict=True)]  # type: ignore[misc]
    return {name: runs[0] for name, runs in side_by_side(contenders, repeats=1).items()}


def padded(sample: Sample) -> Batch:
    """As a batch makes it, of one sample."""
    return Batch.collate([sample], "coco", Task.PANOPTIC, (SIZE, SIZE))


def _setting(root: Path, split: str, seeds: int) -> tuple[TrainDataset, list[Key], list[Plan], dict[str, Masks]]:
    reader = CocoPanoptic(root=str(root.absolute()), split=split)
    reader.setup(root)
    view = TrainDataset(reader, TrainTransform(SIZE, SCALES))
    keys = [(index, 1000 * seed + index) for seed in range(seeds) for index in range(len(reader))]
    plans = [recorded(view, *key) for key in keys]
    masks = {
        "masks": Masks(root, split, lean=False, cut_first=False),
        "lean masks": Masks(root, split, lean=True, cut_first=False),
        "lean masks, cut first": Masks(root, split, lean=True, cut_first=True),
    }
    return view, keys, plans, masks


def use_one_core() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def recorded(view: TrainDataset, index: int, seed: int) -> Plan:
    """What our transform does with a sample: the window is noted as it is cut, the flip shown by a marked corner."""
    transform, reader = view.transform, view.reader
    size = reader.index.image(index).size  # type: ignore[attr-defined]
    noted: dict[str, Any] = {}
    original = transform._jitter.get_params_dependent_on_data

    def note(params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        noted.update(original(params, data))
        return noted.copy()

    transform._jitter.get_params_dependent_on_data = note  # type: ignore[method-assign]
    try:
        gradient = np.zeros((*size, 3), np.uint8) + np.linspace(0, 255, size[1]).astype(np.uint8)[None, :, None]
        empty = SegmentMap(torch.full(size, -1, dtype=torch.int16), torch.zeros(0, dtype=torch.int64))
        moved, _, _ = transform(gradient, empty, seed)
    finally:
        del transform._jitter.get_params_dependent_on_data
    row = moved[0, 0, : noted["out"][1]]
    return Plan(noted["window"], noted["out"], bool(row[0] > row[-1]), size)


# --------------------------------------------------------------------------------------------------------- index


def measure(what: str, root: Path, cache: Path) -> dict[str, float]:
    """One figure of `data_index.py`, in its own process."""
    command = [sys.executable, str(Path(__file__).with_name("data_index.py")), what, str(root)]
    environment = os.environ | {"DATASEG_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def bench_index(report: Report, big: Path, tenth: Path, repeats: int) -> None:
    with tempfile.TemporaryDirectory(dir=big.parent) as folder:
        roots = {}
        for name, path in (("big", big), ("tenth", tenth)):
            roots[name] = Path(folder) / name
            place = roots[name] / "objects365/train/zhiyuan_objv2_train.json"
            place.parent.mkdir(parents=True)
            place.symlink_to(path.absolute())
        cache = Path(folder) / "cache"
        built = measure("build", roots["big"], cache)
        opened = [measure("open", roots["big"], cache) for _ in range(repeats)]
        coco = measure("coco", roots["tenth"], cache)
        built_tenth = measure("build", roots["tenth"], cache)
    report.settings |= {
        "images": built["images"],
        "boxes": built["boxes"],
        "json_gb": big.stat().st_size / 1e9,
        "build_seconds": built["seconds"],
        "build_cpu_seconds": built["cpu_seconds"],
        "imports_gb": built["imports_gb"],
        "tenth_json_gb": tenth.stat().st_size / 1e9,
    }
    report.add_medians("tenth of the file, seconds", {"ours": [built_tenth["seconds"]], "COCO()": [coco["seconds"]]})
    report.add_medians("tenth of the file, peak GB", {"ours": [built_tenth["peak_gb"]], "COCO()": [coco["peak_gb"]]})
    report.add("index_peak_gb", built["peak_gb"], "peak memory of building the index, libraries included, GB")
    median = {name: statistics.median(o[name] for o in opened) for name in opened[0]}
    report.add("index_open_s", median["seconds"], "finding and opening it when it is built, seconds")
    report.add("worker_extra_mb", median["worker_extra_mb"], "memory that a loading process has for itself, MB")
    report.add("records_per_s", median["records_per_s"], "images with their boxes read at random a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, help="folder with val2017 and annotations/panoptic_val2017")
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--big", type=Path, default=Path("/tmp/objects365_big.json"), help="made if it is not there")
    parser.add_argument(
        "--tenth", type=Path, default=Path("/tmp/objects365_tenth.json"), help="made if it is not there"
    )
    parser.add_argument("--seeds", type=int, default=20, help="augmentations of each image")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["pipeline", "index"], default=None)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    use_one_core()
    settings = {"size": SIZE, "scale_range": SCALES, "seeds": options.seeds, "repeats": options.repeats}
    peers = ("torchvision", "pillow", "opencv-python-headless", "kornia_rs", "pyarrow", "pycocotools", "numpy")
    report = Report("data", settings, peers)
    if options.only != "index":
        bench_pipeline(report, options.coco, options.split, options.seeds, options.repeats)
    if options.only != "pipeline":
        for path, share in ((options.big, 1), (options.tenth, 10)):
            if not path.exists():
                make_objects365.write(path, make_objects365.IMAGES // share, make_objects365.BOXES // share)
        bench_index(report, options.big, options.tenth, options.repeats)
    report.finish(write=not options.dry_run)


if __name__ == "__main__":
    main()
