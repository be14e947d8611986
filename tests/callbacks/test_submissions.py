"""Predictions as files: what a run writes is scored from its files as it was scored in memory."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.trainer.states import TrainerFn
from pycocotools import mask as coco_mask

from callbacks import Submissions
from data_modules.mini import MiniSpec, ensure
from dataseg.cli import co_training
from dataseg.prediction_files import InstanceResults, LabelFiles, PanopticFiles
from dataseg.structures import Batch, ClassSpec, DatasetSpec, InstanceMasks, SegmentMap, Task, UserError, Vocabulary

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = Vocabulary(
    "two", (ClassSpec(7, "sky", False, ("sky",), (0, 0, 255)), ClassSpec(9, "cat", True, ("cat",), (255, 0, 0)))
)
MODULE = SimpleNamespace(
    datasets={
        "a": DatasetSpec(VOCABULARY, (Task.SEMANTIC, Task.PANOPTIC)),
        "b": DatasetSpec(VOCABULARY, (Task.INSTANCE,)),
        "trained_only": DatasetSpec(VOCABULARY),
    }
)


def trainer(folder=None, fn=TrainerFn.VALIDATING):
    return SimpleNamespace(state=SimpleNamespace(fn=fn), log_dir=None if folder is None else str(folder))


def halves(left: int) -> SegmentMap:
    ids = torch.zeros(4, 6, dtype=torch.int32)
    ids[:, left:] = 1
    return SegmentMap(ids=ids, labels=torch.tensor([0, 1]))


def batch(dataset, image_id, is_padding=False):
    images = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    return Batch(dataset, Task.SEMANTIC, images, [(4, 6)], [halves(3)], [image_id], [(4, 6)], [0], [is_padding])


def masks(left: int) -> InstanceMasks:
    rle = coco_mask.encode((halves(left).ids == 1).numpy().astype("uint8", order="F"))
    return InstanceMasks([rle], torch.tensor([1]), (4, 6), scores=torch.tensor([0.5]))


def run(callback, trainer, left, image_ids, padding=False):
    callback.on_validation_start(trainer, MODULE)
    for i, image_id in enumerate(image_ids):
        outputs = {"semantic": [halves(left)], "panoptic": [halves(left)]}
        callback.on_validation_batch_end(trainer, MODULE, outputs, batch("a", image_id, padding and i == 1), i)
        callback.on_validation_batch_end(trainer, MODULE, {"instance": [masks(left)]}, batch("b", image_id), i)
    callback.on_validation_epoch_end(trainer, MODULE)


def test_files_of_every_data_set_and_task(tmp_path):
    run(Submissions(id_shifts={"b": -1}), trainer(tmp_path), 2, ["12"])
    folder = tmp_path / "submissions"
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "a/semantic/12.png", "a/panoptic.json", "a/panoptic/000000000012.png", "b/instance.json",
    }  # fmt: skip
    panoptic = PanopticFiles(folder / "a" / "panoptic.json", VOCABULARY).load("12")
    assert torch.equal(panoptic.class_map(), halves(2).class_map())
    assert torch.equal(LabelFiles(folder / "a" / "semantic", VOCABULARY).load("12").class_map(), halves(2).class_map())
    assert json.loads((folder / "b" / "instance.json").read_text())[0]["category_id"] == 8
    results = InstanceResults(folder / "b" / "instance.json", VOCABULARY, {"12": (4, 6)}, id_shift=1)
    assert results.load("12").scores.tolist() == [0.5]


def test_padding_and_training_write_nothing(tmp_path):
    run(Submissions(tmp_path), trainer(), 2, ["1", "2"], padding=True)
    assert [p.name for p in (tmp_path / "a" / "semantic").iterdir()] == ["1.png"]
    run(Submissions(tmp_path / "fit"), trainer(fn=TrainerFn.FITTING), 2, ["1"])
    assert not (tmp_path / "fit").exists()


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="needs a folder"):
        Submissions().on_validation_start(trainer(), MODULE)
    with pytest.raises(UserError, match="trained_only"):
        Submissions(tmp_path, {"trained_only": 1}).on_validation_start(trainer(), MODULE)


def rank_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    run(Submissions(Path(folder) / "out"), trainer(), 2 + rank, [str(10 + rank)])
    dist.destroy_process_group()


def test_two_ranks_write_one_file(tmp_path):
    mp.set_forkserver_preload(["callbacks", "data_modules.mini", "dataseg.cli"])  # imported once, not by each rank
    mp.start_processes(rank_of_two, (str(tmp_path),), nprocs=2, start_method="forkserver")
    files = PanopticFiles(tmp_path / "out" / "a" / "panoptic.json", VOCABULARY)
    assert files.image_ids == ["10", "11"]
    assert torch.equal(files.load("11").class_map(), halves(3).class_map())
    assert [r["image_id"] for r in json.loads((tmp_path / "out" / "b" / "instance.json").read_text())] == [10, 11]


def test_from_the_command_line(tmp_path):
    suite = ensure(
        tmp_path / "mini", MiniSpec(seed=3, size=64, ade=(2, 2), coco=(2, 2), objects365=(2, 2)), progress=False
    )
    cli = co_training.run(
        [
            "validate",
            f"--config={ROOT / 'conf' / 'base.yaml'}",
            f"--config={ROOT / 'conf' / 'exp' / 'mini_all.yaml'}",
            "--exp=mini_all",
            "--run=test",
            f"--runs={tmp_path}",
            f"--data.root={suite}",
            "--data.mini=null",
            "--data.eval_transform.size=64",
            "--data.num_workers=0",
            "--trainer.accelerator=cpu",
            "--trainer.callbacks+=callbacks.Submissions",
            f"--trainer.callbacks.folder={tmp_path / 'out'}",
        ]
    )
    spec = cli.datamodule.specs["ade"]
    files = LabelFiles(tmp_path / "out" / "ade" / "semantic", spec.vocabulary, ignore=[0])
    assert len(files.image_ids) == 2
    reader = cli.datamodule.val_readers["ade"]
    assert set(files.image_ids) == {reader.image_id(i) for i in range(2)}
    for name in ("coco/panoptic.json", "ade_panoptic/panoptic.json", "o365/instance.json"):
        assert (tmp_path / "out" / name).is_file()
