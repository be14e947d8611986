"""What a training run is about to do, in five lines."""

from __future__ import annotations

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table


class StartUp(pl.Callback):
    """Prints datasets, ratios, effective batch, device and precision, and where results go, before the first step.

    What it says of the data is ``datamodule.summary()``: lines by heading.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir  # asked on every rank: the first one sends it to the others
        if not trainer.is_global_zero:
            return
        summary = getattr(trainer.datamodule, "summary", None)  # type: ignore[attr-defined]
        lines: dict[str, str] = summary() if summary is not None else {}
        steps = f"{trainer.max_steps:,} steps" if trainer.max_steps > 0 else "no limit of steps"
        lines["runs on"] = f"{_device(trainer, pl_module)}, {trainer.precision}; {steps}, {_parameters(pl_module)}"
        lines["results"] = str(folder or "nowhere: the trainer has no logger that keeps files")
        table = Table.grid(padding=(0, 2))
        for heading, text in lines.items():
            table.add_row(heading, text)
        Console(highlight=False, markup=False).print(table)


def _device(trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
    kind = pl_module.device.type.upper()
    return kind if trainer.world_size == 1 else f"{trainer.world_size} x {kind}"


def _parameters(pl_module: pl.LightningModule) -> str:
    every = sum(p.numel() for p in pl_module.parameters())
    frozen = sum(p.numel() for p in pl_module.parameters() if not p.requires_grad)
    return f"{every / 1e6:.1f} M parameters" + (f" ({frozen / 1e6:.1f} M of them frozen)" if frozen else "")
