import json
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import torch
from fake_data import write_ade
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from data_modules import CoTraining, loaders
from data_modules.formats import (
    AdePanoptic,
    AdeSemantic,
    CocoPanoptic,
    CocoSemantic133,
    Objects365Boxes,
    Objects365Instances,
)
from data_modules.loaders import worker_options
from data_modules.mini import MiniSpec
from data_modules.sampling import Schedule, share_out
from data_modules.transforms import TrainTransform
from dataseg.inference.resize import ResizeShortestEdge
from dataseg.structures import Batch, Boxes, SegmentMap, Task, UserError
from dataseg.structures.errors import loading_process_died

RATIOS = {"ade": 1, "coco": 2, "o365": 2}


def make(root, **changes):
    options = {
        "train": {"ade": AdeSemantic(), "coco": CocoPanoptic(), "o365": Objects365Boxes()},
        "val": {"coco": CocoPanoptic(split="val2017")},
        "ratios": RATIOS,
        "root": root,
        "train_transform": TrainTransform(32),
        "batch_size": 4,
        "eval_transform": ResizeShortestEdge(32),
        "num_workers": 0,
        "seed": 7,
    }
    return CoTraining(**{**options, **changes})


class Recorder(LightningModule):
    """Counts its steps and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, dict)
        given = {name: b for name, b in batch.items() if b is not None}
        for name, b in given.items():
            assert isinstance(b, Batch)
            assert b.dataset == name
            self.seen.append((name, tuple(b.image_ids), tuple(b.seeds), int(b.images.long().sum())))
        mean = sum(b.images.float().mean() for b in given.values())
        return self.weight * mean

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        assert isinstance(batch, Batch)
        self.validated += batch.image_ids

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def fit(data, tmp_path, steps=12, ckpt=None, save_at=None, **options):
    model = Recorder()
    callbacks = [ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=save_at, save_top_k=-1)] if save_at else []
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=bool(save_at),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **{"limit_val_batches": 0, **options},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*resum.*|.*dataloader.*state.*")
        trainer.fit(model, data, ckpt_path=ckpt)
    assert trainer.global_step == steps
    return model


def test_one_data_set_a_step_with_exact_quotas(fake_root, tmp_path):
    seen = fit(make(fake_root), tmp_path, steps=10).seen
    names = [name for name, *_ in seen]
    assert len(names) == 10
    assert {name: names.count(name) for name in RATIOS} == {"ade": 2, "coco": 4, "o365": 4}
    assert all(len(ids) == 4 for _, ids, *_ in seen)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_samples(fake_root, tmp_path, workers):
    alone = fit(make(fake_root), tmp_path, steps=6).seen
    assert fit(make(fake_root, num_workers=workers), tmp_path, steps=6).seen == alone


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("unable to mmap")


def test_a_sample_that_cannot_be_sent_is_not_waited_for(capfd):
    loader = DataLoader([Unsendable()], collate_fn=lambda samples: samples[0], **worker_options(1, 1))
    with pytest.raises(RuntimeError, match="DataLoader worker") as stop:
        next(iter(loader))
    assert loading_process_died(stop.value)
    assert "unable to mmap" in capfd.readouterr().err


class NeverBegins(threading.Thread):
    """As a thread that finds no memory to begin with."""

    def _bootstrap(self):
        pass


class NeedsThread:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        NeverBegins().start()


def test_a_thread_that_never_begins_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(loaders, "START_SECONDS", 1)
    with pytest.raises(RuntimeError, match="DataLoader worker") as stop:
        next(iter(DataLoader(NeedsThread(), **worker_options(1, 1))))
    assert loading_process_died(stop.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_goes_on_with_the_next_sample(fake_root, tmp_path, workers):
    whole = fit(make(fake_root), tmp_path, steps=9, save_at=4).seen
    checkpoint = next((tmp_path / "ckpt").glob("*step=4.ckpt"))
    assert fit(make(fake_root, num_workers=workers), tmp_path, steps=9, ckpt=checkpoint).seen == whole[4:]


def test_data_that_are_not_those_of_before_are_told_on_resuming(fake_root, tmp_path, caplog):
    root = shutil.copytree(fake_root, tmp_path / "data")
    fit(make(root), tmp_path, steps=3, save_at=2)
    checkpoint = next((tmp_path / "ckpt").glob("*step=2.ckpt"))
    fit(make(root), tmp_path, steps=3, ckpt=checkpoint)
    assert "samples differ" not in caplog.text
    boxes = next(root.rglob("zhiyuan_objv2_train.json"))
    content = json.loads(boxes.read_text())
    content["annotations"][0]["bbox"] = [1, 1, 5, 5]
    boxes.write_text(json.dumps(content))
    image = sorted((root / "ADEChallengeData2016" / "images" / "training").iterdir())[0]
    image.write_bytes(image.read_bytes() + b"x")
    fit(make(root), tmp_path, steps=3, ckpt=checkpoint)
    assert "ade: 1 samples differ from those that the run was trained on so far (5 now, 5 then)" in caplog.text
    assert "o365: 1 samples differ" in caplog.text
    assert "coco" not in caplog.text


@pytest.mark.parametrize("batches", [3, 4])
def test_epochs_of_any_length_do_not_change_the_samples(fake_root, tmp_path, batches):
    whole = fit(make(fake_root), tmp_path, steps=9).seen
    assert fit(make(fake_root), tmp_path, steps=9, limit_train_batches=batches).seen == whole


def test_resume_mid_epoch_and_with_validation_between(fake_root, tmp_path):
    options = {"limit_val_batches": 1.0, "val_check_interval": 3, "check_val_every_n_epoch": None}
    model = fit(make(fake_root), tmp_path, steps=8, save_at=5, **options)
    assert len(model.validated) >= 2 * 6
    checkpoint = next((tmp_path / "ckpt").glob("*step=5.ckpt"))
    assert fit(make(fake_root), tmp_path, steps=8, ckpt=checkpoint, **options).seen == model.seen[5:]


def test_accumulation_takes_the_same_samples_per_optimisation_step(fake_root, tmp_path):
    whole = fit(make(fake_root), tmp_path, steps=6).seen
    parts = fit(make(fake_root), tmp_path, steps=6, accumulate_grad_batches=2).seen
    assert len(parts) == 12
    joined = [(a[0], a[1] + b[1], a[2] + b[2]) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    assert [a[0] for a in parts[::2]] == [b[0] for b in parts[1::2]]
    assert joined == [w[:3] for w in whole]


def test_mixed_batches_hold_every_data_set_in_the_ratio(fake_root, tmp_path):
    seen = fit(make(fake_root, mixed=True, batch_size=5), tmp_path, steps=4).seen
    assert [(name, len(ids)) for name, ids, *_ in seen] == [("ade", 1), ("coco", 2), ("o365", 2)] * 4
    coco = [i for name, ids, *_ in seen for i in ids if name == "coco"]
    assert len(set(coco[:6])) == 6  # 6 images: one epoch


def test_ranks_share_each_global_batch():
    def samples(world_size, accumulate=1):
        shares = [Schedule(1, {"a": 1.0, "b": 2.0}, 8, world_size, r, accumulate) for r in range(world_size)]
        streams = [[s.batches(name, 5, 0) for s in shares] for name in "ab"]
        steps = []
        for _ in range(6):
            rows = [[next(stream) for stream in streams[1]] for _ in range(accumulate)]
            steps.append([key for row in rows for part in row for key in part])
        return steps

    assert samples(1) == samples(2) == samples(4) == samples(2, accumulate=2)


@pytest.mark.parametrize("start", range(8))
def test_a_schedule_can_start_anywhere(start):
    schedule = Schedule(3, {"a": 1.0, "b": 2.0}, 4, accumulate=2)

    def from_(micro_step):
        streams = {name: schedule.batches(name, 7, micro_step) for name in "ab"}
        return [next(streams[name]) for m in range(micro_step, 20) for name in "ab" if schedule.is_on(name, m)]

    assert from_(start) == from_(0)[start:]


@pytest.mark.parametrize("options", [{"batch_size": 5, "world_size": 2}, {"batch_size": 0}])
def test_batches_that_do_not_divide_are_refused(options):
    with pytest.raises(ValueError, match=r"must be (a multiple of|positive, got 0)"):
        Schedule(seed=0, ratios={"a": 1.0, "b": 4.0}, **options)


@pytest.mark.parametrize(
    ("asked", "options", "shares"),
    [
        (5, {}, {"a": 1, "b": 4}),
        (6, {}, {"a": 2, "b": 8}),
        (16, {"world_size": 2, "accumulate": 2}, {"a": 4, "b": 16}),
        (21, {"world_size": 4}, {"a": 8, "b": 32}),
    ],
)
def test_mixed_batches_are_raised_to_what_divides(asked, options, shares):
    schedule = Schedule(seed=0, ratios={"b": 2.0, "a": 0.5}, batch_size=asked, mixed=True, **options)
    assert schedule.shares == shares
    assert schedule.batch_size == sum(shares.values())
    parts = options.get("world_size", 1) * options.get("accumulate", 1)
    assert {name: schedule.micro_batch_size(name) * parts for name in shares} == shares


def test_mixed_batches_are_not_raised_beyond_measure():
    with pytest.raises(ValueError, match=r"'a': 100, 'b': 141.*multiple of 241 samples, but batch_size=8"):
        Schedule(seed=0, ratios={"a": 1.0, "b": 1.41}, batch_size=8, mixed=True)


def test_a_raised_batch_is_told(fake_root, tmp_path, caplog):
    with caplog.at_level("INFO"):
        seen = fit(make(fake_root, mixed=True, batch_size=4), tmp_path, steps=1).seen
    assert [len(ids) for _, ids, *_ in seen] == [1, 2, 2]
    told = [r.message for r in caplog.records if "mixed batches" in r.message]
    assert told == ["mixed batches: 5 samples a step (ade 1, coco 2, o365 2), not 4: the ratios divide no fewer"]


def test_ratios_can_be_tempered(tmp_path):
    assert make(tmp_path, ratio_exponent=0).ratios == {"ade": 1, "coco": 1, "o365": 1}
    given = {"ade": 2, "coco": 8, "o365": 0}
    assert make(tmp_path, ratios=given, ratio_exponent=0.5).ratios == {"ade": 1, "coco": 2}
    assert make(tmp_path, ratios=given, ratio_exponent=0).ratios == {"ade": 1, "coco": 1}


def test_training_batches(fake_root):
    data = make(fake_root)
    data.setup("fit")
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    batches = {}
    for batch, *_ in data.train_dataloader():
        batches |= {name: b for name, b in batch.items() if b is not None}
        if len(batches) == 3:
            break
    for batch in batches.values():
        assert batch.images.shape == (4, 3, 32, 32)
        assert all(max(size) <= 32 for size in batch.sizes)
    assert all(isinstance(t, SegmentMap) for t in batches["coco"].targets)
    assert [t.size for t in batches["coco"].targets] == batches["coco"].sizes
    assert all(isinstance(t, Boxes) for t in batches["o365"].targets)
    assert [batches[n].task for n in RATIOS] == [Task.SEMANTIC, Task.PANOPTIC, Task.INSTANCE]


def test_tasks_that_targets_do_not_determine_are_refused(fake_root):
    wrong = {
        "train": [CocoPanoptic(tasks=["instance"])],
        "val": [CocoPanoptic(tasks=["panoptic", "instance"])],
    }
    for part, readers in wrong.items():
        for reader in readers:
            sets = {"train": {}, "ratios": {}, "val": {}} | {part: {"x": reader}}
            with pytest.raises(UserError, match=rf"data\.{part}\.x: "):
                make(fake_root, **sets | ({"ratios": {"x": 1}} if part == "train" else {}))


def test_evaluation_gives_each_image_once_and_marks_padding(fake_root):
    val = {
        "ade": AdeSemantic(split="validation"),
        "coco": CocoPanoptic(split="val2017", tasks=["panoptic", "semantic"]),
        "coco_semantic": CocoSemantic133(split="val2017"),
        "ade_panoptic": AdePanoptic(),
        "o365": Objects365Instances(),
    }
    data = make(fake_root, train={}, ratios={}, val=val)
    data.setup("validate")
    assert list(data.tasks) == list(val)
    assert data.tasks["coco"] == [Task.PANOPTIC, Task.SEMANTIC]
    for world_size in (1, 2, 4):
        seen: list[str] = []
        lengths = set()
        for rank in range(world_size):
            data.trainer = type("T", (), {"world_size": world_size, "global_rank": rank})()
            loader = data.val_dataloader()[0]
            batches = list(loader)
            lengths.add(len(batches))
            seen += [i for b in batches for i, p in zip(b.image_ids, b.is_padding, strict=True) if not p]
        assert lengths == {-(-5 // world_size)}
        assert sorted(seen) == [f"ADE_val_{i + 1:08d}" for i in range(5)]
    batch = next(iter(loader))
    assert batch.images.shape[2:] == (32, 64)  # 40 x 56 -> 32 x 45, padded to a multiple of 32
    assert batch.sizes == [(32, 45)]
    assert batch.original_sizes == [batch.targets[0].size] == [(40, 56)]


def test_validations_while_training_can_take_a_subset(fake_root, tmp_path):
    data = make(fake_root, eval_subset=2, num_workers=0)
    model = fit(data, tmp_path, steps=2, limit_val_batches=1.0, val_check_interval=1, num_sanity_val_steps=0)
    first, second = model.validated[:2], model.validated[2:]
    assert first == second
    assert len(set(first)) == 2
    assert data.counts["val coco"] == {"images": len(data.val_readers["coco"]), "evaluated": 2}
    whole = Recorder()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(whole, data, verbose=False)
    assert set(first) < set(whole.validated)
    assert len(whole.validated) == data.counts["val coco"]["images"] == len(data.val_readers["coco"])
    with pytest.raises(UserError, match="eval_subset=0 is a number of images"):
        make(fake_root, eval_subset=0)


def test_only_data_sets_with_a_ratio_are_touched(fake_root):
    train = {"coco": CocoPanoptic(), "elsewhere": CocoPanoptic(root="nowhere")}
    data = make(fake_root, train=train, ratios={"coco": 1, "elsewhere": 0})
    data.setup("fit")
    assert list(data.train_readers) == ["coco"]
    assert set(data.vocabularies) == {"coco"}


def evaluation_sets(**changes):
    val = {"coco": CocoPanoptic(split="val2017"), "ade": AdeSemantic(split="validation"), "o365": Objects365Instances()}
    return {"train": {}, "ratios": {}, "val": val, "missing": "skip", **changes}


def test_evaluation_sets_that_are_not_there_are_skipped(tmp_path, caplog):
    write_ade(tmp_path, split="validation")
    data = make(tmp_path, **evaluation_sets())
    assert list(data.specs) == list(data.tasks) == ["ade"]  # the network is built by these
    assert not caplog.records
    data.require_files("validate")
    data.setup("validate")
    data.setup("validate")
    assert len(data.val_dataloader()) == 1
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"2 of 3 evaluation sets are not below {tmp_path} and are left out:")
    assert "- coco: COCO panoptic: no " in message
    assert str(tmp_path / "coco" / "val2017") in message
    assert str(tmp_path / "objects365") in message


def test_training_sets_are_never_skipped(tmp_path):
    write_ade(tmp_path, split="validation")
    data = make(tmp_path, **evaluation_sets(train={"coco": CocoPanoptic()}, ratios={"coco": 1}))
    assert set(data.specs) == {"ade", "coco"}
    with pytest.raises(ValueError, match=r"1 of 2 datasets are missing[\s\S]*- coco: COCO panoptic: looked for"):
        data.require_files("fit")


def test_one_evaluation_set_must_be_there(tmp_path):
    data = make(tmp_path, **evaluation_sets())
    with pytest.raises(ValueError, match="3 of 3 datasets are missing"):
        data.require_files("validate")


def test_mini_sets_are_made_before_any_is_found_missing(tmp_path):
    spec = MiniSpec(size=32, ade=(1, 1), coco=(1, 1), objects365=(1, 1), open=1)
    val = {"ade": AdeSemantic(split="validation", vocabulary="mini_ade"), "other": CocoPanoptic(root="elsewhere")}
    data = make(tmp_path / "mini_suite", train={}, ratios={}, val=val, missing="skip", mini=spec)
    assert list(data.tasks) == ["ade"]


def test_missing_data_sets_are_reported_together(tmp_path):
    write_ade(tmp_path)
    data = make(tmp_path)
    with pytest.raises(ValueError, match="3 of 4") as error:
        data.setup("fit")
    message = str(error.value)
    for part in ("coco", "o365", "annotations/panoptic_val2017.json", "https://cocodataset.org", "objects365.org"):
        assert part in message
    assert str(tmp_path / "coco") in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratios": {"cocoa": 1}}, "cocoa.*ade, coco, o365"),
        ({"ratios": {"coco": -1}}, "positive"),
        ({"val": {"o365": Objects365Boxes(split="val")}}, "boxes only"),
        ({"val": {"coco": CocoPanoptic(split="val2017", names="official")}}, "two different names"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **changes)


def test_workers_are_shared_out_by_ratio():
    assert share_out(9, {"ade": 1, "coco": 4, "o365": 4}) == {"ade": 1, "coco": 4, "o365": 4}
    assert share_out(4, {"ade": 1, "coco": 4, "o365": 4}) == {"ade": 1, "coco": 1, "o365": 1} | {"coco": 2}
    assert share_out(1, {"a": 1, "b": 9}) == {"a": 1, "b": 1}
    assert share_out(0, {"a": 1, "b": 9}) == {"a": 0, "b": 0}


def test_configuration_by_yaml(fake_root, tmp_path: Path):
    (tmp_path / "ade.yaml").write_text("class_path: data_modules.formats.AdeSemantic\ninit_args:\n  split: training\n")
    (tmp_path / "all.yaml").write_text(
        "data:\n  train:\n    ade: ade.yaml\n    coco:\n      class_path: data_modules.formats.CocoPanoptic\n"
        "      init_args: {root: elsewhere, tasks: [panoptic]}\n  ratios: {ade: 1, coco: 4}\n"
    )
    parser = ArgumentParser()
    parser.add_argument("--cfg", action="config")
    parser.add_class_arguments(CoTraining, "data", sub_configs=True)  # as LightningCLI does
    overrides = ["--data.train.coco.root=coco", "--data.ratios.coco=2", f"--data.root={fake_root}"]
    config = parser.parse_args([f"--cfg={tmp_path / 'all.yaml'}", *overrides])
    data = parser.instantiate(config).data
    assert data.ratios == {"ade": 1, "coco": 2}
    data.setup("fit")
    assert len(data.train_readers["coco"]) == 6
