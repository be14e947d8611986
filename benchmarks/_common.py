"""The form that every benchmark follows: timed side by side, a table printed, and one JSON file written.

``benchmarks/results/<name>.json`` holds the ratios by name at its top, then ``meaning`` (one sentence a ratio),
``medians`` (seconds or bytes a contender), ``settings``, ``versions`` and ``hardware``.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dataseg.io.atomic import write_text

RESULTS = Path(__file__).resolve().parent / "results"


def side_by_side(contenders: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of each run of each contender, taking turns so that they meet the same machine; one warm-up each.

    A contender that works on a GPU waits for it before it returns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the runs of one contender's time as a multiple of another's in the same turn."""
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def peak_memory(run: Callable[[], object], device: str) -> float:
    """Peak of two runs above what was there before them, MB; for a process of its own.

    Of the whole process on the CPU (Linux only), of tensors on a GPU.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run()
    run()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    return (peak - before) / 1e6


def _resident(key: str) -> int:
    """Bytes of memory that this process holds (VmRSS), or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@dataclass
class Report:
    """What one benchmark found.

    Attributes:
        name: of the file below ``results/``.
        settings: what was run: sizes, counts, threads, repeats.
        packages: whose versions stand beside the figures.
    """

    name: str
    settings: dict[str, Any]
    packages: tuple[str, ...] = ()
    ratios: dict[str, float] = field(default_factory=dict)
    meaning: dict[str, str] = field(default_factory=dict)
    medians: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, ratio_name: str, value: float, meaning: str) -> None:
        self.ratios[ratio_name], self.meaning[ratio_name] = value, meaning

    def add_medians(self, subject: str, values: Mapping[str, list[float]]) -> None:
        self.medians[subject] = {name: statistics.median(runs) for name, runs in values.items()}

    def finish(self, write: bool = True) -> Path | None:
        """Print the table; write the file, whole or not at all, unless told otherwise."""
        console = Console()
        for subject, values in self.medians.items():
            table = Table(title=f"{self.name}: {subject} (median)")
            table.add_column("contender")
            table.add_column("value", justify="right")
            for name, value in values.items():
                table.add_row(name, f"{value:.6g}")
            console.print(table)
        table = Table(title=f"{self.name}: ratios")
        table.add_column("ratio")
        table.add_column("value", justify="right")
        table.add_column("meaning")
        for name, value in self.ratios.items():
            table.add_row(name, f"{value:.3g}", self.meaning[name])
        console.print(table)
        if not write:
            return None
        path = RESULTS / f"{self.name}.json"
        content = {
            **self.ratios,
            "meaning": self.meaning,
            "medians": self.medians,
            "settings": self.settings,
            "versions": versions(*self.packages),
            "hardware": hardware(),
            "date": time.strftime("%Y-%m-%d"),
        }
        write_text(path, json.dumps(content, indent=2) + "\n")
        console.print(f"written: {path}")
        return path


def versions(*packages: str) -> dict[str, str]:
    """Of Python, PyTorch, and the named packages ("absent" where not installed)."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
