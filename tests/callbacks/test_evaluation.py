"""Evaluation, record and panels together, driven as Lightning drives them."""

import json
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import Evaluation, LossCurves, RunRecord, Throughput
from dataseg.inference.postprocess import PostProcessor
from dataseg.structures import Batch, ClassSpec, DatasetSpec, SegmentMap, Task, Vocabulary

VOCABULARY = Vocabulary(
    "two", (ClassSpec(1, "sky", False, ("sky",), (0, 0, 255)), ClassSpec(2, "cat", True, ("cat",), (255, 0, 0)))
)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.postprocess = PostProcessor()
        self.datasets = {
            "ade": DatasetSpec(VOCABULARY, (Task.SEMANTIC, Task.PANOPTIC)),
            "train_only": DatasetSpec(VOCABULARY),
        }
        self.text_provenance, self.merge, self.postprocess = "none", "targets", PostProcessor()


class Logger:
    def __init__(self):
        self.values = []

    def log_metrics(self, values, step):
        self.values.append((step, values))

    def save(self):
        pass


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(
        sanity_checking=False,
        logger=None,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        global_step=7,
        ckpt_path=None,
        max_steps=9,
        world_size=1,
        is_global_zero=True,
        log_dir=str(tmp_path),
        log_every_n_steps=1,
        accumulate_grad_batches=1,
        callbacks=[],
        callback_metrics={},
        loggers=[Logger()],
    )


def halves(labels=(0, 1)) -> SegmentMap:
    ids = torch.zeros(4, 6, dtype=torch.int16)
    ids[:, 3:] = 1
    return SegmentMap(ids=ids, labels=torch.tensor(labels))


def batch(image_id: str, is_padding: bool = False) -> Batch:
    images = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    return Batch("ade", Task.SEMANTIC, images, [(4, 6)], [halves()], [image_id], [(4, 6)], [0], [is_padding])


def validate(evaluation, trainer, module, batches):
    evaluation.on_validation_start(trainer, module)
    for i, item in enumerate(batches):
        evaluation.on_validation_batch_end(trainer, module, {"semantic": [halves()], "panoptic": [halves()]}, item, i)
    evaluation.on_validation_epoch_end(trainer, module)


def test_perfect_predictions_score_100_percent_and_padding_is_not_counted(trainer):
    evaluation, module = Evaluation(), Module()
    validate(evaluation, trainer, module, [batch("a"), batch("b"), batch("a", is_padding=True)])
    assert evaluation.results["ade.miou"] == 100
    assert evaluation.results["ade.pq"] == 100
    assert evaluation.results["score"] == 100
    assert evaluation.primary == ["ade.miou", "ade.pq"]
    assert trainer.callback_metrics["ade.pq"] == trainer.callback_metrics["score"] == 100
    [(step, logged)] = trainer.loggers[0].values
    assert step == 7
    assert logged["metrics/ade.pq"] == logged["metrics/score"] == 100
    assert evaluation.per_class["ade", Task.SEMANTIC]["iou"].tolist() == [1.0, 1.0]
    assert evaluation.confusion["ade"].tolist() == [[24, 0, 0], [0, 24, 0]]


@pytest.mark.parametrize(
    ("wanted", "of_data", "key"), [("both", "stored", "pq_stored"), ("stored", "recounted", "pq_recounted")]
)
def test_the_primary_figure_says_which_areas_it_is_of(trainer, wanted, of_data, key):
    evaluation, module = Evaluation(panoptic_areas=wanted), Module()
    module.datasets = {"ade": DatasetSpec(VOCABULARY, (Task.SEMANTIC, Task.PANOPTIC), areas=of_data)}
    validate(evaluation, trainer, module, [batch("a")])
    assert evaluation.primary == ["ade.miou", f"ade.{key}"]
    assert evaluation.results[f"ade.{key}"] == evaluation.results["score"] == 100
    assert evaluation.metrics["ade", Task.PANOPTIC].convention["areas"] == (wanted if wanted == "both" else of_data)


def test_a_new_validation_starts_afresh(trainer):
    evaluation, module = Evaluation(), Module()
    for _ in range(2):
        validate(evaluation, trainer, module, [batch("a")])
    assert evaluation.per_class["ade", Task.PANOPTIC]["tp"].tolist() == [1, 1]  # one image, counted once


def test_record_is_written_whole_and_its_history_survives_a_checkpoint(trainer, tmp_path):
    evaluation, module, record = Evaluation(), Module(), RunRecord()
    trainer.callbacks = [evaluation, record]
    record.on_validation_start(trainer, module)
    validate(evaluation, trainer, module, [batch("a")])
    record.on_validation_end(trainer, module)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["ade.miou"] == 100
    assert content["run"]["step"] == 7
    assert content["history"] == [{"step": 7, "ade.miou": 100.0, "ade.pq": 100.0, "score": 100.0}]
    assert content["per_class"]["ade.panoptic"]["sky"]["pq"] == 100.0
    assert content["per_class"]["ade.panoptic"]["sky"]["tp"] == 1
    assert content["confusion"]["ade"] == [[12, 0, 0], [0, 12, 0]]
    semantic, panoptic = (content["conventions"][f"ade.{task}"] for task in ("semantic", "panoptic"))
    assert semantic["vocabulary"] == VOCABULARY.digest
    assert (semantic["merge"], semantic["postprocess"]) == ("targets", "merge sum, resize masks")
    assert panoptic["postprocess"] == "score_threshold 0.8, overlap_threshold 0.8, mask_threshold 0.5"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]  # no temporary file is left
    resumed = RunRecord()
    resumed.load_state_dict(record.state_dict())
    assert resumed.history == record.history


def test_record_needs_exactly_one_evaluation(trainer):
    with pytest.raises(ValueError, match=r"one callbacks\.Evaluation, found 0"):
        RunRecord().on_validation_end(trainer, Module())


def test_loss_curves_are_means_over_the_data_sets_own_steps(trainer):
    curves = LossCurves()
    trainer.log_every_n_steps = 2
    for step, (dataset, value) in enumerate([("ade", 1.0), ("coco", 5.0), ("ade", 2.0), ("ade", 4.0)], start=1):
        trainer.global_step = step
        outputs = {"terms": {dataset: {"mask": torch.tensor(value), "dice": torch.tensor(1.0)}}}
        curves.on_train_batch_end(trainer, Module(), outputs, None, step - 1)
    (first_step, first), (second_step, second) = trainer.loggers[0].values
    assert (first_step, second_step) == (2, 4)
    assert first == {"loss/ade/mask": 1, "loss/ade/dice": 1, "loss/ade/total": 2, "loss/coco/mask": 5,
                     "loss/coco/dice": 1, "loss/coco/total": 6}  # fmt: skip
    assert second == {"loss/ade/mask": 3, "loss/ade/dice": 1, "loss/ade/total": 4}  # nothing old of coco


def test_loss_of_accumulated_batches_is_logged_once_a_step(trainer):
    curves = LossCurves()
    trainer.log_every_n_steps, trainer.accumulate_grad_batches = 2, 3
    for number in range(12):
        trainer.global_step = (number + 1) // 3  # stays what it was until the last batch of a step
        outputs = {"terms": {"ade": {"mask": torch.tensor(float(number))}}}
        curves.on_train_batch_end(trainer, Module(), outputs, None, number)
    assert [(step, means["loss/ade/mask"]) for step, means in trainer.loggers[0].values] == [(2, 2.5), (4, 8.5)]


def test_throughput_reports_sampling_and_what_was_dropped(trainer):
    throughput = Throughput()
    throughput.on_train_start(trainer, Module())
    for step, dataset in enumerate(["ade", "coco", "coco", "coco"]):
        item = batch(str(step))
        item.counts = {"emptied_by_crop": 2}
        both = {"ade": None, "coco": None, dataset: item}
        throughput.on_train_batch_start(trainer, Module(), both, step)
        throughput.on_train_batch_end(trainer, Module(), {}, both, step)
    report = trainer.loggers[0].values[-1][1]
    assert report["sampling/ade"] == 0.25
    assert report["sampling/coco"] == 0.75
    assert report["preparation/dropped/coco/emptied_by_crop"] == 6
    assert report["throughput/images_per_second"] > 0
    assert 0 <= report["throughput/data_wait"] <= 1
