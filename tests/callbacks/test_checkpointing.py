"""Checkpoint files: kept, renamed, checked, and what happens when they cannot be written."""

import errno
import json
import logging
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import Checkpoints
from callbacks.checkpointing import MAX_FAILURES
from dataseg.checkpoint import files, resume, validate
from dataseg.structures import UserError


class Model(pl.LightningModule):
    """A line; ``score`` and ``a.pq`` go up and down, other scores down and up."""

    def __init__(self, scores=(1.0, 3.0, 2.0), others=()):
        super().__init__()
        self.others = others
        self.layer = torch.nn.Linear(2, 1)
        self.scores = list(scores)
        self.validations = 0

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        return None

    def on_validation_epoch_end(self):
        if self.scores:
            score = self.scores[self.validations % len(self.scores)]
            self.log_dict({"score": score, "a.pq": score, **dict.fromkeys(self.others, -score)})
        self.validations += 1

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}


def fit(root: Path, callback: Checkpoints, steps: int = 12, model: Model | None = None, ckpt=None, **options) -> Model:
    model = model or Model()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        num_sanity_val_steps=0,
        **{"val_check_interval": 4, "check_val_every_n_epoch": None, **options},
    )
    loader = DataLoader(torch.ones(64, 2), batch_size=1)
    trainer.fit(model, loader, DataLoader(torch.ones(2, 2)), ckpt_path=ckpt)
    return model


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "checkpoints").iterdir()}


def test_last_ones_and_the_best_are_kept(tmp_path):
    callback = Checkpoints(every_n_steps=5, keep_last=2)
    fit(tmp_path, callback)
    assert names(tmp_path) == {"step-11.ckpt", "step-12.ckpt", "last.ckpt", "best.ckpt"}
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "step-12.ckpt"
    best = torch.load(callback.best_model_path, weights_only=True)
    assert best["global_step"] == 8  # the second of the scores 1, 3, 2
    assert best["callbacks"]["Checkpoints"]["best"] == [3.0, 8]


def test_without_score_there_is_no_best(tmp_path):
    fit(tmp_path, Checkpoints(every_n_steps=6), model=Model(scores=()))
    assert "best.ckpt" not in names(tmp_path)
    assert "step-12.ckpt" in names(tmp_path)


def test_time_alone_is_enough(tmp_path):
    fit(tmp_path, Checkpoints(every_n_steps=1000, every_n_minutes=1e-9, keep_last=99), limit_val_batches=0)
    assert {f"step-{n}.ckpt" for n in range(1, 13)} <= names(tmp_path)


def test_best_survives_a_resume_with_worse_scores(tmp_path):
    fit(tmp_path, Checkpoints(every_n_steps=5), steps=8)
    fit(
        tmp_path, Checkpoints(every_n_steps=5), model=Model(scores=[0.0]), ckpt=tmp_path / "checkpoints" / "step-8.ckpt"
    )
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 8


def test_a_run_in_another_folder_has_a_best_of_its_own(tmp_path):
    fit(tmp_path / "a", Checkpoints(every_n_steps=5), steps=8)
    source = tmp_path / "a" / "checkpoints" / "step-8.ckpt"
    fit(tmp_path / "b", Checkpoints(every_n_steps=5), model=Model(scores=[0.0]), ckpt=source)
    assert torch.load(tmp_path / "b" / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 12


def test_the_best_by_another_score(tmp_path):
    callback = Checkpoints(every_n_steps=5, monitor="b.miou")
    fit(tmp_path, callback, model=Model(others=["b.miou"]))
    assert torch.load(callback.best_model_path, weights_only=True)["global_step"] == 4


def test_a_score_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"no score monitor=a\.qp: did you mean a\.pq\? It has score and a\.pq, b\.miou$"
    ):
        fit(tmp_path, Checkpoints(every_n_steps=5, monitor="a.qp"), model=Model(others=["b.miou"]))


@pytest.mark.parametrize("changed", [{"monitor": "b.miou"}, {}], ids=["another score", "the mean over other datasets"])
def test_the_best_by_other_scores_is_not_compared(tmp_path, caplog, changed):
    fit(tmp_path, Checkpoints(every_n_steps=5), steps=8)
    resumed = {"model": Model(scores=[0.0], others=["b.miou"]), "ckpt": tmp_path / "checkpoints" / "step-8.ckpt"}
    fit(tmp_path, Checkpoints(every_n_steps=5, **changed), **resumed)
    assert "best by other scores (a.pq) than those of now" in caplog.text
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 12


def test_newer_files_of_an_abandoned_course_are_set_aside(tmp_path, caplog):
    fit(tmp_path, Checkpoints(every_n_steps=5, keep_last=9))
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, Checkpoints(every_n_steps=5, keep_last=9), steps=6, ckpt=tmp_path / "checkpoints" / "step-5.ckpt")
    assert "step-12.ckpt is newer" in caplog.text
    assert {"step-12.ckpt.old", "step-6.ckpt"} <= names(tmp_path)
    assert max(files.step_files(tmp_path / "checkpoints")) == 6


@pytest.mark.parametrize("options", [{"val_check_interval": {"minutes": 1}}, {"check_val_every_n_epoch": 1}])
def test_validation_by_epochs_is_refused(tmp_path, options):
    with pytest.raises(UserError, match="val_check_interval"):
        fit(tmp_path, Checkpoints(), **options)


def test_validation_within_a_step_is_refused(tmp_path):
    with pytest.raises(UserError, match="multiple of"):
        fit(tmp_path, Checkpoints(), accumulate_grad_batches=3)


class FullDisk:
    """Stands in for torch.save: writes a little, then the disk is full, so often."""

    def __init__(self, monkeypatch, after: int, times: int):
        self.save, self.calls, self.after, self.times = torch.save, 0, after, times
        monkeypatch.setattr(resume.torch, "save", self)

    def __call__(self, content, file):
        self.calls += 1
        if self.after < self.calls <= self.after + self.times:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        self.save(content, file)


def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path, monkeypatch, caplog):
    FullDisk(monkeypatch, after=1, times=MAX_FAILURES - 1)
    fit(tmp_path, Checkpoints(every_n_steps=2), limit_val_batches=0)
    assert "No space left on device" in caplog.text
    assert "the last good one is that of step 2" in caplog.text
    assert names(tmp_path) == {"step-8.ckpt", "step-10.ckpt", "step-12.ckpt", "last.ckpt"}


def test_a_disk_that_stays_full_ends_the_run(tmp_path, monkeypatch):
    FullDisk(monkeypatch, after=1, times=99)
    with pytest.raises(UserError, match=r"step 2\. Make room and go on with RESUME=auto"):
        fit(tmp_path, Checkpoints(every_n_steps=2), limit_val_batches=0)
    assert names(tmp_path) == {"step-2.ckpt", "last.ckpt"}
    assert validate.problem_of(tmp_path / "checkpoints" / "step-2.ckpt") is None


def test_the_last_checkpoint_is_required(tmp_path, monkeypatch):
    FullDisk(monkeypatch, after=0, times=99)
    with pytest.raises(UserError, match="there is none yet"):
        fit(tmp_path, Checkpoints(), limit_val_batches=0)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    class Broken(Model):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 6:
                self.layer.weight.data.fill_(float("nan"))

    with pytest.raises(UserError, match=r"not finite at step 8 \(layer.weight\)"):
        fit(tmp_path, Checkpoints(every_n_steps=2), model=Broken(), limit_val_batches=0)
    assert max(files.step_files(tmp_path / "checkpoints")) == 6


# ------------------------------------------------------------------------------------------------ RESUME=auto


@pytest.fixture
def experiment(tmp_path) -> Path:
    """Run "a" with checkpoints of the steps 3, 6 and 9."""
    fit(tmp_path / "a", Checkpoints(every_n_steps=3), steps=9, limit_val_batches=0)
    return tmp_path


def test_the_newest_is_found(experiment):
    assert resume.find(experiment, None) == resume.Resumption("a", experiment / "a/checkpoints/step-9.ckpt", 9)
    assert resume.find(experiment, "b") is None
    assert resume.find(experiment / "nowhere", None) is None


def test_the_run_written_to_last_is_found(experiment):
    fit(experiment / "b", Checkpoints(every_n_steps=3), steps=3, limit_val_batches=0)
    found = resume.find(experiment, None)
    assert found is not None
    assert (found.run, found.step) == ("b", 3)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            middle = content.index(b"state_dict") // 2 + len(content) // 2
            path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
        case "no checkpoint":
            torch.save({"state_dict": {}}, path)
        case "code":
            torch.save({"state_dict": Path("x")}, path)  # needs more than weights_only=True allows
        case "nan":
            checkpoint = torch.load(path, weights_only=True)
            checkpoint["state_dict"]["layer.bias"].fill_(float("inf"))
            torch.save(checkpoint, path)
        case "folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize("how", ["cut", "empty", "no checkpoint", "code", "nan", "folder"])
def test_damaged_checkpoints_are_passed_over_with_a_message(experiment, how, caplog):
    folder = experiment / "a" / "checkpoints"
    damage(folder / "step-9.ckpt", how)
    found = resume.find(experiment, "a")
    assert found is not None
    assert found.step == 6
    assert "step-9.ckpt cannot be resumed from" in caplog.text


def test_if_all_are_damaged_the_best_is_taken_and_else_the_user_told(tmp_path):
    fit(tmp_path / "a", Checkpoints(every_n_steps=3), steps=9)
    folder = tmp_path / "a" / "checkpoints"
    for path in files.step_files(folder).values():
        path.unlink()
        path.touch()
    found = resume.find(tmp_path, "a")
    assert found is not None
    assert found.checkpoint.name == "best.ckpt"
    assert found.step == 8
    (folder / "best.ckpt").unlink()
    with pytest.raises(UserError, match="none of the 3 checkpoints"):
        resume.find(tmp_path, "a")


def test_leftovers_of_a_crash_are_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".step-4.ckpt.tmp").write_bytes(b"half")
    (folder / ".step-5.ckpt.tmp").mkdir()
    fit(tmp_path, Checkpoints(), steps=2, limit_val_batches=0)
    assert names(tmp_path) == {"step-2.ckpt", "last.ckpt"}


def test_state_is_plain(tmp_path):
    callback = Checkpoints()
    assert json.loads(json.dumps(callback.state_dict())) == {"best": None, "best_of": None}


def test_fast_dev_run_writes_nothing(tmp_path):
    fit(tmp_path, Checkpoints(), fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()
