"""What 64 GPUs ask of shared storage and of each other, counted and timed on one machine.

python benchmarks/cluster.py

Files are made up and small in number; what is counted for one image or archive is multiplied by the data's size.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from _common import Report

from data_modules.loaders import RankShare
from data_modules.sampling import Schedule
from dataseg.checkpoint.io import DurableCheckpointIO
from dataseg.io.paths import read_bytes
from dataseg.io.zip_archive import Archive, split

RANKS = 64
IMAGES, PATCHES = 1_742_289, 51  # Objects365's training set, and the archives it comes in
VALIDATION = {"ade": 2_000, "coco": 5_000, "o365": 80_000}
PARAMETERS = 44_000_000  # of the ResNet-50 network
CALLS = {"opens": r"open(at)?", "reads": r"p?read(64)?", "stats": r"(newfstatat|stat|fstat|statx)"}
READ = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from dataseg.io.paths import read_bytes
for i in range(int(sys.argv[3])):
    read_bytes(Path(sys.argv[2]) / f"{i:06d}.jpg")
"""


def system_calls(folder: Path, images: int) -> dict[str, int]:
    """Of a process that reads the first images of a folder or archive, by strace."""
    source = str(Path(__file__).parents[1] / "src")
    command = ["strace", "-f", "-c", sys.executable, "-c", READ, source, str(folder), str(images)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    words = [line.split() for line in lines if re.match(r" +\d", line)]
    return {
        name: sum(int(row[3]) for row in words if re.fullmatch(pattern, row[-1])) for name, pattern in CALLS.items()
    }


def storage(report: Report, folder: Path, count: int) -> None:
    """Loose files against an archive."""
    (folder / "loose").mkdir()
    content = np.random.default_rng(0).bytes(200_000)
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for i in range(count):
            (folder / "loose" / f"{i:06d}.jpg").write_bytes(content)
            archive.writestr(f"{i:06d}.jpg", content)
    for name, place in {"loose files": folder / "loose", "archive": folder / "all.zip"}.items():
        none, all_ = system_calls(place, 0), system_calls(place, count)
        report.medians[f"system calls an image, {name}"] = {key: (all_[key] - none[key]) / count for key in CALLS}
    assert read_bytes(folder / "loose" / "000000.jpg") == read_bytes(folder / "all.zip" / "000000.jpg")


def directory(report: Report, folder: Path) -> None:
    """The list of an archive's members, which every process that opens it needs."""
    members = IMAGES // PATCHES
    path = folder / "patch.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(members):
            archive.writestr(f"patch0/objects365_v1_{i:08d}.jpg", b"")
    begun = time.perf_counter()
    found = split(path / "patch0")
    seconds = time.perf_counter() - begun
    assert found is not None
    kept: Archive = found[0]
    arrays = kept._names.nbytes + kept._records.nbytes
    with zipfile.ZipFile(path) as archive:
        listed = path.stat().st_size - archive.start_dir
    report.medians["all 51 archives, in a process that opens them"] = {
        "seconds": seconds * PATCHES,
        "MB read": listed * PATCHES / 1e6,
        "MB kept": arrays * PATCHES / 1e6,
    }


def order(report: Report) -> None:
    """Every image once an epoch over all ranks, and the same samples a step on half of them."""
    ratios, visits = {"o365": 1.0}, IMAGES // RANKS
    seconds, seen = [], np.zeros(IMAGES, dtype=np.int32)
    first: dict[int, list[tuple[int, int]]] = {}
    for ranks, parts in ((RANKS, 1), (RANKS // 2, 2), (RANKS // 4, 4)):
        taken: list[tuple[int, int]] = []
        streams = [
            Schedule(0, ratios, RANKS, ranks, rank, accumulate=parts).batches("o365", IMAGES, 1000 * parts)
            for rank in range(ranks)
        ]
        begun = time.perf_counter()
        for _ in range(10):
            for _ in range(parts):
                taken += [sample for stream in streams for sample in next(stream)]
        seconds.append((time.perf_counter() - begun) / len(taken))
        first[ranks] = taken
    assert first[RANKS] == first[RANKS // 2] == first[RANKS // 4]
    for rank in range(RANKS):
        stream = Schedule(0, ratios, RANKS, RANKS, rank).batches("o365", IMAGES, 0)
        for _ in range(visits):
            seen[next(stream)[0][0]] += 1
    report.medians["order of 1.74 million images on 64 ranks"] = {
        "images drawn twice in an epoch": int((seen > 1).sum()),
        "images of the next step": int((seen == 0).sum()),
        "microseconds a sample": 1e6 * float(np.median(seconds)),
    }


def validation(report: Report) -> None:
    for name, images in VALIDATION.items():
        shares = [list(RankShare(range(images), RANKS, rank)) for rank in range(RANKS)]
        own = sorted(index for share in shares for index, repeated in share if not repeated)
        assert own == list(range(images))
        report.medians[f"validation of {name} on 64 ranks"] = {
            "images a rank": len(shares[0]),
            "marked repeats": sum(map(len, shares)) - images,
        }


def checkpoint(report: Report, folder: Path) -> None:
    """Weights and AdamW's two moments as one file, on disk before it has its name; its share if it is sharded."""
    state = {name: torch.randn(PARAMETERS) for name in ("weights", "exp_avg", "exp_avg_sq")}
    begun = time.perf_counter()
    DurableCheckpointIO().save_checkpoint(state, folder / "all.ckpt")
    seconds = time.perf_counter() - begun
    size = (folder / "all.ckpt").stat().st_size
    report.medians["checkpoint of the ResNet-50 network"] = {
        "MB": size / 1e6,
        "seconds to a local disk": seconds,
        "MB a rank, sharded": size / 1e6 / RANKS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500, help="files that are read")
    options = parser.parse_args()
    if not shutil.which("strace"):
        sys.exit("error: strace is needed to count system calls")
    report = Report("cluster", {"ranks": RANKS, "images": IMAGES, "files read": options.images})
    with tempfile.TemporaryDirectory() as folder:
        storage(report, Path(folder), options.images)
        directory(report, Path(folder))
        order(report)
        validation(report)
        checkpoint(report, Path(folder))
    report.finish()


if __name__ == "__main__":
    main()
