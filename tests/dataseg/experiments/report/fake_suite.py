"""A suite whose runs are small files of the real formats."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

SUITE = {
    "title": "Scaling <of> the 'suite'",
    "about": "First paragraph.\n\nSecond & last.",
    "columns": [
        {"metric": "ade.miou", "title": "ADE mIoU", "trained_by": "ade"},
        {"metric": "coco.pq", "title": "COCO | PQ", "trained_by": "coco"},
    ],
    "tables": [
        {
            "title": "Main",
            "baselines": {"ade.miou": "one_ade@10", "coco.pq": "one_coco@20"},
            "rows": [
                {"exp": "one_ade", "steps": 10, "paper": {"ade.miou": 42.0, "coco.pq": 8.4}},
                {"exp": "one_coco", "steps": 20, "title": "<b>coco</b>", "paper": {"ade.miou": 15.3, "coco.pq": 48.2}},
                {"exp": "both", "steps": 30, "paper": {"ade.miou": 48.1, "coco.pq": 49.0}},
            ],
        },
        {
            "title": "Methods",
            "seeds": 1,
            "baselines": {"": "both@30"},
            "rows": [{"exp": "both", "steps": 30}, {"exp": "both", "overlays": ["mixed"], "steps": 30}],
        },
    ],
}
RATIOS = {"one_ade@10": {"ade": 1}, "one_coco@20": {"coco": 1, "ade": 0}, "both@30": {"ade": 1, "coco": 3}}
RATIOS["both+mixed@30"] = RATIOS["both@30"]
FIGURES = {  # by row and metric, one value a seed
    "one_ade@10": {"ade.miou": [40.1, 41.7, 40.9], "coco.pq": [3.0, 4.0, 3.5]},
    "one_coco@20": {"ade.miou": [9.0, 9.5, 11.0], "coco.pq": [50.0, 52.0, 51.0]},
    "both@30": {"ade.miou": [45.5, 44.25, 47.0], "coco.pq": [50.5, 51.5, 49.0]},
    "both+mixed@30": {"ade.miou": [44.5], "coco.pq": [60.0]},
}


@dataclass
class Tree:
    """A suite's file and its runs."""

    root: Path
    suite: dict = field(default_factory=lambda: json.loads(json.dumps(SUITE)))

    @property
    def suite_file(self) -> Path:
        return self.root / "conf" / "suite" / "small.yaml"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def folder(self, row: str, seed: int) -> Path:
        return self.runs / "small" / row / f"seed{seed}"

    def write_suite(self) -> None:
        self.suite_file.parent.mkdir(parents=True, exist_ok=True)
        self.suite_file.write_text(yaml.safe_dump(self.suite), encoding="utf-8")

    def write_run(self, row: str, seed: int, events: bool = True, **changes) -> Path:
        folder = self.folder(row, seed)
        folder.mkdir(parents=True, exist_ok=True)
        metrics = self.metrics(row, seed) | changes
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        steps = metrics["run"]["max_steps"]
        config = {"seed_everything": seed, "run": f"seed{seed}", "trainer": {"max_steps": steps, "callbacks": []}}
        config["data"] = {
            "class_path": "x.Y",
            "init_args": {"ratios": RATIOS[row], "root": "/somewhere", "mixed": "+" in row},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        if events:
            write_events(folder, RATIOS[row], steps, seed)
        return folder

    def metrics(self, row: str, seed: int) -> dict:
        figures = {metric: values[seed] for metric, values in FIGURES[row].items()}
        steps = int(row.rpartition("@")[2])
        classes = {"sky": figures["ade.miou"] + 5, "a<b": figures["ade.miou"] - 5 - seed}
        return {
            **figures,
            "coco.pq_things": None,
            "run": {"step": steps, "max_steps": steps, "seed": seed, "parameters": 1234},
            "conventions": {"ade.semantic": {"metric": "mean IoU", "vocabulary": "3163b96ab5aa"}},
            "history": [{"step": steps // 2, **{m: v / 2 for m, v in figures.items()}}, {"step": steps, **figures}],
            "per_class": {"ade.semantic": {name: {"iou": value, "pixels": 7.0} for name, value in classes.items()}},
        }


def write_events(folder: Path, ratios: dict[str, float], steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with SummaryWriter(str(folder)) as board:
        for step in range(1, steps + 1):
            for name, ratio in ratios.items():
                if ratio:
                    board.add_scalar(f"loss/{name}/total", 10 / step + seed, step)
                    board.add_scalar(f"sampling/{name}", ratio / sum(ratios.values()) + 0.01, step)
            board.add_scalar("throughput/images_per_second", 30.0 + step, step)
        for tag in ("ade.semantic/image_1", "ade.semantic/image_2", "ade.semantic/image_3", "pictures.coco.panoptic/7"):
            board.add_image(tag, rng.integers(0, 255, (120, 400, 3), np.uint8), steps, dataformats="HWC")
