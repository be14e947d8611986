"""One measurement of the index in a process of its own; `benchmarks/data.py` starts these.

python benchmarks/data_index.py build|open|coco ROOT
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import numpy as np

READS = 200_000


def private_mb() -> float:
    """Memory that this process shares with no other, MB (10**6 bytes)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
    return kilobytes * 1024 / 1e6


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _reader(root: Path):  # noqa: ANN202
    from data_modules.formats import Objects365Boxes

    return Objects365Boxes(skip=[]), root


def build(root: Path) -> dict[str, float]:
    reader, root = _reader(root)
    before = peak_gb()
    start, cpu = time.perf_counter(), time.process_time()
    reader.setup(root)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": peak_gb(),
        "imports_gb": before,
        "images": len(reader),
        "boxes": len(reader.index.all("label")),
        **reader.counts,
    }


def _worker(reader, results) -> None:  # noqa: ANN001
    """What a loading process does with the index: read records from all over it."""
    rng = np.random.default_rng(os.getpid())
    total = 0
    for i in rng.integers(len(reader), size=READS).tolist():
        total += len(reader.index.column(i, "xyxy")) + len(reader.index.image(i).file_name)
    results.put((total, private_mb()))


def open_(root: Path) -> dict[str, float]:
    reader, root = _reader(root)
    start = time.perf_counter()
    reader.setup(root)
    opened = time.perf_counter() - start
    chosen = np.random.default_rng(0).integers(len(reader), size=READS).tolist()
    start = time.perf_counter()
    for i in chosen:
        reader.index.image(i), reader.index.column(i, "xyxy").copy(), reader.index.column(i, "label").astype(np.int64)
    rate = READS / (time.perf_counter() - start)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_worker, args=(reader, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    extra = [results.get()[1] for _ in workers]
    for worker in workers:
        worker.join()
    return {"seconds": opened, "records_per_s": rate, "worker_extra_mb": max(extra)}


def coco(root: Path) -> dict[str, float]:
    from pycocotools.coco import COCO

    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        COCO(str(root / "objects365/train/zhiyuan_objv2_train.json"))
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_gb(), "private_mb": private_mb()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "open", "coco"])
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    print(json.dumps({"build": build, "open": open_, "coco": coco}[options.what](options.root)))
