"""Guards: what is not a number stops the run or is skipped, is written down and can be looked at again."""

import logging
import sys
from collections import Counter
from types import SimpleNamespace

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from cli_runs import arguments
from tiny_model import PETS

from callbacks import NonFiniteError, NonFiniteGuard, Throughput, UnreadableSamples, throughput
from data_modules.datasets import MAX_REPLACEMENTS, TrainDataset
from data_modules.mini import MiniSpec, ensure
from dataseg.cli import co_training, replay
from dataseg.io.images import encoded_image
from dataseg.structures import Batch, Boxes, ClassEmbeddings, DatasetSpec, Task, UserError
from dataseg.training import replay_file
from dataseg.training.module import CoTrainedSegmenter


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    spec = MiniSpec(seed=3, size=64, ade=(6, 3), coco=(8, 3), objects365=(8, 5))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


# --------------------------------------------------------------------------------------------- the guard alone


class Model(pl.LightningModule):
    """Its loss or gradient is not finite at some steps."""

    def __init__(self, bad=(), gradient_only=False):
        super().__init__()
        self.datasets = {"a": DatasetSpec(PETS)}
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.bad, self.gradient_only = set(bad), gradient_only
        self.history = []

    def classes(self, dataset):
        return ClassEmbeddings.blank(PETS)

    def training_step(self, batch, batch_idx):
        loss = (self.weight * 2).sum()
        if self.trainer.global_step in self.bad:
            zero = self.weight[:1] - self.weight[:1].detach()
            loss = loss + (zero.sqrt().sum() if self.gradient_only else loss * float("inf"))  # sqrt'(0) is infinite
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.history.append(self.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)


class Data(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield {
                "a": Batch(
                    dataset="a",
                    task=Task.INSTANCE,
                    images=torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
                    sizes=[(4, 4)],
                    targets=[Boxes(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))],
                    image_ids=["picture 7"],
                    original_sizes=[(4, 4)],
                    seeds=[5],
                    is_padding=[False],
                ),
                "b": None,
            }


def fit(tmp_path, model, guard, steps=6, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard],
        **options,
    )
    trainer.fit(model, torch.utils.data.DataLoader(Data(), batch_size=None))
    return model


@pytest.mark.parametrize("gradient_only", [False, True])
def test_stops_before_the_weights_are_spoilt(tmp_path, gradient_only):
    model = Model(bad=[3], gradient_only=gradient_only)
    with pytest.raises(NonFiniteError, match=r"step 3.*a \['picture 7'\][\s\S]*make replay FILE=.*step-3-rank-0.pt"):
        fit(tmp_path, model, NonFiniteGuard())
    assert len(model.history) == 3
    torch.testing.assert_close(model.weight.detach(), model.history[-1])
    content = torch.load(tmp_path / "replay" / "step-3-rank-0.pt", weights_only=True)
    assert content["batches"][0][0]["image_ids"] == ["picture 7"]
    weights = torch.load(tmp_path / "replay" / "step-3-weights.pt", weights_only=True)
    torch.testing.assert_close(weights["weight"], model.history[-1])


def test_nothing_is_written_in_a_healthy_run(tmp_path):
    fit(tmp_path, Model(), NonFiniteGuard())
    assert not (tmp_path / "replay").exists()


def test_skipped_steps_change_no_weight_and_are_counted(tmp_path, caplog):
    guard = NonFiniteGuard(on_non_finite="skip", limit=2)
    with caplog.at_level(logging.WARNING):
        model = fit(tmp_path, Model(bad=[2, 4]), guard)
    assert guard.skipped == [2, 4]
    moved = [not torch.equal(a, b) for a, b in zip(model.history, model.history[1:], strict=False)]
    assert moved == [True, False, True, False, True]
    assert "2 steps were skipped" in caplog.text


def test_the_limit_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match=r"after 2 skipped steps\. step 5"):
        fit(tmp_path, Model(bad=[1, 3, 5]), NonFiniteGuard(on_non_finite="skip", limit=2))


def test_accumulated_batches_are_all_written(tmp_path):
    with pytest.raises(NonFiniteError):
        fit(tmp_path, Model(bad=[1]), NonFiniteGuard(), accumulate_grad_batches=3)
    content = torch.load(tmp_path / "replay" / "step-1-rank-0.pt", weights_only=True)
    assert len(content["batches"]) == len(content["seeds"]) == len(content["facts"]["losses"]) == 3


# ------------------------------------------------------------------------------------- with the network, replayed


def test_a_stopped_run_is_replayed_to_the_module_at_fault(suite, tmp_path, capsys):
    options = ["--data.batch_size=2", "--trainer.max_steps=4", "--trainer.limit_val_batches=0"]
    spoil = '{"class_path": "cli_runs.Spoil", "init_args": {"step": 2, "parameter": "network.pixel_decoder.%s"}}'
    args = arguments(suite, tmp_path / "runs", tmp_path / "trace", *options)
    with pytest.raises(NonFiniteError) as stop:
        co_training.run([*args, f"--trainer.callbacks+={spoil % 'layers.0.linear1.weight'}"])
    assert "step 2" in str(stop.value)
    file = tmp_path / "runs" / "mini_all" / "test" / "replay" / "step-2-rank-0.pt"
    assert str(file) in str(stop.value)
    capsys.readouterr()
    assert replay.main([str(file)]) == 1
    out, err = capsys.readouterr()
    assert "weights were not finite before the step: network.pixel_decoder.layers.0.linear1.weight" in out
    assert "it happened again: NotFiniteHereError: network.pixel_decoder.layers.0.linear1:" in err


def test_a_step_that_is_fine_is_called_so(suite, tmp_path, capsys):
    options = ["--data.batch_size=2", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    cli = co_training.run(arguments(suite, tmp_path / "runs", tmp_path / "trace", *options))
    cli.datamodule.trainer = cli.trainer
    batch = next(part for part in next(iter(cli.datamodule.train_dataloader()))[0].values() if part is not None)
    file = tmp_path / "runs" / "mini_all" / "test" / "replay" / "step-0-rank-0.pt"
    module = cli.model
    assert isinstance(module, CoTrainedSegmenter)
    replay_file.write_replay(file, module, [[batch]], [1], {"precision": "32-true", "device": "cpu"})
    capsys.readouterr()
    assert replay.main([str(file)]) == 0
    out = capsys.readouterr().out
    assert batch.image_ids[0] in out
    assert "everything was finite this time" in out
    torch.manual_seed(1)
    terms = module.loss_terms(batch)
    assert all(f"{name}: {float(value.detach()):.6g}" in out for name, value in terms.items())


def test_replay_imports_nothing_that_a_configuration_names(suite, tmp_path, monkeypatch):
    options = ["--data.batch_size=2", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    spoil = '{"class_path": "cli_runs.Spoil", "init_args": {"step": 0, "parameter": "network.classifier.background"}}'
    args = arguments(suite, tmp_path / "runs", tmp_path / "trace", *options, f"--trainer.callbacks+={spoil}")
    with pytest.raises(NonFiniteError):
        co_training.run(args)
    run = tmp_path / "runs" / "mini_all" / "test"
    file = run / "replay" / "step-0-rank-0.pt"
    (tmp_path / "own_losses.py").write_text("from dataseg.losses import Criterion\nclass Mine(Criterion):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["model"]["criterion"]["class_path"] = "own_losses.Mine"
    content["data"] = content["model"]["text"] = content["trainer"] = {"class_path": "evilmod.Foo"}  # not looked at
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"other\.yaml: model\.criterion cannot be built.*own_losses\.Mine"):
        replay.replay(file, tmp_path / "other.yaml")
    assert "own_losses" not in sys.modules
    assert replay.main([str(file), f"--config={tmp_path / 'other.yaml'}", "--packages", "own_losses"]) == 1


def test_without_a_guard_a_batch_that_cannot_be_matched_still_stops(suite, tmp_path):
    args = arguments(suite, tmp_path / "runs", tmp_path / "trace", "--trainer.max_steps=2", "--data.batch_size=2")
    spoil = '{"class_path": "cli_runs.Spoil", "init_args": {"step": 1, "parameter": "network.classifier.background"}}'
    args = [a for a in args if not a.startswith("--trainer.callbacks=")]
    with pytest.raises(ValueError, match="non-finite matching cost"):
        co_training.run([*args, f"--trainer.callbacks=[{spoil}]", "--trainer.limit_val_batches=0"])


@pytest.mark.parametrize("content", [b"", b"no replay file"])
def test_a_file_that_is_none_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt: not a replay file"):
        replay.main([str(tmp_path / "x.pt")])


# ------------------------------------------------------------------------------------------- unreadable samples


class Reader:
    """Ten samples, some of which cannot be read."""

    def __init__(self, bad=()):
        self.bad = set(bad)

    def __len__(self):
        return 10

    def image_id(self, index):
        return str(index)

    def open(self, index):
        if index in self.bad:
            raise UserError(f"made up: cannot read {index}.jpg")
        _, png = cv2.imencode(".png", np.full((4, 4, 3), index, np.uint8))
        return encoded_image(png.tobytes(), "made up"), Boxes(torch.zeros(0, 4), torch.zeros(0).long())


class Transform:
    def whole_size(self, size, seed):
        return None

    def __call__(self, image, target, seed, size=None):
        return torch.from_numpy(image).permute(2, 0, 1), target, {"emptied": seed}


def test_an_unreadable_sample_stops_by_default():
    with pytest.raises(UserError, match=r"made up: cannot read 3\.jpg"):
        TrainDataset(Reader(bad=[3]), Transform())[3, 1]


def test_or_is_replaced_by_the_next_readable_one():
    view = TrainDataset(Reader(bad=[8, 9, 0]), Transform(), on_error="skip")
    assert view[7, 5].counts == {"emptied": 5}
    for _ in range(2):  # the same again
        sample = view[8, 5]
        assert (sample.image_id, sample.seed) == ("1", 5)
        lost = {f"unreadable: made up: cannot read {i}.jpg": 1 for i in (8, 9, 0)}
        assert sample.counts == {"emptied": 5, "replaced": 1, **lost}


def test_a_data_set_that_cannot_be_read_at_all_stops():
    assert MAX_REPLACEMENTS >= 10
    with pytest.raises(UserError, match="10 samples in a row cannot be read"):
        TrainDataset(Reader(bad=range(10)), Transform(), on_error="skip")[0, 0]


def test_replaced_samples_are_listed_at_the_end(caplog):
    callback = UnreadableSamples()
    batch = next(iter(Data()))
    for counts in ({"unreadable: x.jpg": 1, "replaced": 1}, {}, {"unreadable: x.jpg": 2, "unreadable: y.jpg": 1}):
        batch["a"].counts = counts
        callback.on_train_batch_end(None, None, None, batch, 0)
    assert callback.found == {"x.jpg": 3, "y.jpg": 1}
    again = UnreadableSamples()
    again.load_state_dict(callback.state_dict())
    with caplog.at_level(logging.WARNING):
        again.on_train_end(None, None)
    assert "4 samples could not be read" in caplog.text
    assert "3 x x.jpg" in caplog.text
    assert again.found == Counter(callback.found)


# -------------------------------------------------------------------------------------------------- slow data


def test_waiting_for_data_is_warned_of(caplog, monkeypatch):
    now = 0.0
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    callback, trainer = (
        Throughput(),
        SimpleNamespace(global_step=1, log_every_n_steps=1, accumulate_grad_batches=1, world_size=1, loggers=[]),
    )
    callback.on_train_start(trainer, None)
    batch = next(iter(Data()))
    for wait in [1.0, 1.0, 0.1, 1.0, 1.0]:
        now += wait
        callback.on_train_batch_start(trainer, None, batch, 0)
        now += 1.0
        callback.on_train_batch_end(trainer, None, None, batch, 0)
    assert "waiting for data" not in caplog.text
    now += 1.5
    callback.on_train_batch_start(trainer, None, batch, 0)
    now += 1.0
    callback.on_train_batch_end(trainer, None, None, batch, 0)
    assert "60 % of the time is spent waiting for data" in caplog.text
