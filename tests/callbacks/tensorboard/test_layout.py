"""Layout, row of settings and tags, read back as TensorBoard reads them."""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from pycocotools import mask as coco_mask
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import DATA_TYPE_STRING, STATUS_SUCCESS

from callbacks import Dashboard, Evaluation
from callbacks.evaluation import TAG
from callbacks.tensorboard import hparams
from callbacks.tensorboard.layout import layout
from dataseg.metrics.by_task import primary_score, task_of
from dataseg.structures import Batch, ClassSpec, DatasetSpec, InstanceMasks, SegmentMap, Task, Vocabulary

CONF = Path(__file__).resolve().parents[3] / "conf"
VOCABULARY = Vocabulary(
    "two", (ClassSpec(1, "sky", False, ("sky",), (0, 0, 255)), ClassSpec(2, "cat", True, ("cat",), (255, 0, 0)))
)
DATASETS = {
    "ade": DatasetSpec(VOCABULARY, tuple(Task)),
    "ade_panoptic": DatasetSpec(VOCABULARY, (Task.PANOPTIC,)),
    "boxes": DatasetSpec(VOCABULARY),
}
CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_steps": 200},
    "data": {
        "class_path": "data_modules.CoTraining",
        "init_args": {"ratios": {"ade": 1.0, "coco": 4.0}, "mixed": True},
    },
    "model": {
        "network": {"class_path": "N", "init_args": {"backbone": {"class_path": "B", "init_args": {"name": "r50"}}}},
        "postprocess": {"semantic": {"merge": "max"}},
        "optimization": {"lr": 0.0005},
        "weights": None,
    },
}


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.datasets = DATASETS


def halves() -> SegmentMap:
    ids = torch.zeros(4, 6, dtype=torch.int16)
    ids[:, 3:] = 1
    return SegmentMap(ids=ids, labels=torch.tensor([0, 1]))


def masks() -> InstanceMasks:
    rle = coco_mask.encode((halves().ids == 1).numpy().astype("uint8", order="F"))
    return InstanceMasks([rle], torch.tensor([1]), (4, 6), scores=torch.ones(1))


@pytest.fixture
def trainer(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="mini_ade", version="seed0", default_hp_metric=False)
    return SimpleNamespace(
        sanity_checking=False,
        global_step=7,
        is_global_zero=True,
        logger=logger,
        loggers=[logger],
        log_dir=logger.log_dir,
        callbacks=[Evaluation()],
        callback_metrics={},
    )


def evaluated(trainer) -> Evaluation:
    evaluation = Evaluation.of(trainer)
    evaluation.on_validation_start(trainer, Module())
    truth = {Task.INSTANCE: masks()}
    for dataset, spec in DATASETS.items():
        for task in spec.tasks:
            target = truth.get(task, halves())
            images = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
            batch = Batch(dataset, task, images, [(4, 6)], [target], ["a"], [(4, 6)], [0], [False])
            evaluation.on_validation_batch_end(trainer, Module(), {str(task): [target]}, batch, 0)
    evaluation.on_validation_epoch_end(trainer, Module())
    return evaluation


def events(trainer) -> EventAccumulator:
    trainer.logger.experiment.flush()
    return EventAccumulator(trainer.logger.log_dir).Reload()


def charts() -> dict[str, str]:
    """Regular expression by category and title."""
    content = layout(["ade", "boxes"], DATASETS)
    return {f"{c}: {title}": chart[1][0] for c, charts in content.items() for title, chart in charts.items()}


def test_every_score_is_in_the_chart_of_its_dataset_and_task_alone(trainer):
    evaluation = evaluated(trainer)
    for (dataset, task), metric in evaluation.metrics.items():
        for name in metric.compute():
            tag = f"{TAG}{dataset}.{name}"
            found = [title for title, pattern in charts().items() if re.match(pattern, tag)]
            primary = ["metrics: primary scores"] if name == primary_score(task, metric) else []
            assert found == [*primary, f"metrics: {dataset}, {task}"]
            assert task_of(name) is task


@pytest.mark.parametrize(
    ("tag", "title"),
    [
        ("loss/ade/total", ["losses: total", "losses: ade"]),
        ("loss/boxes/projection", ["losses: boxes"]),
        ("loss/ade_panoptic/total", ["losses: total"]),
        ("metrics/score", ["metrics: score"]),
        ("sampling/ade", ["course of the run: sampling ratios"]),
        ("throughput/images_per_second", ["course of the run: images per second"]),
        ("lr-AdamW/backbone", ["course of the run: learning rates"]),
        ("tables/classes.ade.semantic", []),
    ],
)
def test_tags_find_their_charts(tag, title):
    assert [t for t, pattern in charts().items() if re.match(pattern, tag)] == title


def test_layout_is_written_once_and_names_what_is_trained_on(trainer):
    dashboard = Dashboard()
    dashboard.on_train_start(trainer, Module())
    for step in range(3):
        dashboard.on_train_batch_start(trainer, Module(), {"ade": None, "boxes": object()}, step)
    [event] = events(trainer).Tensors("custom_scalars__config__")
    written = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [c.title for c in written.category] == ["losses", "metrics", "course of the run"]
    assert [c.title for c in written.category[0].chart] == ["total", "ade", "boxes"]


def test_figures_go_to_callbacks_by_name_and_to_the_logger_under_metrics_if_defined(trainer):
    evaluation = evaluated(trainer)
    assert set(trainer.callback_metrics) == set(evaluation.results)
    assert torch.isnan(trainer.callback_metrics["ade.mask_apl"])  # no large mask
    written = events(trainer)
    [event] = written.Scalars("metrics/ade.miou")
    assert (event.step, event.value) == (7, 100.0)
    assert "metrics/score" in written.Tags()["scalars"]
    assert "metrics/ade.mask_apl" not in written.Tags()["scalars"]


def row_of(trainer) -> tuple[dict, list[str], int]:
    """Settings and scores of the one row that TensorBoard finds, and the number of event files."""
    found = events(trainer).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
    values = {key: value.string_value or value.number_value for key, value in start.hparams.items()}
    assert metadata.parse_session_end_info_plugin_data(found[metadata.SESSION_END_INFO_TAG]).status == STATUS_SUCCESS
    assert [info.name for info in experiment.hparam_infos] == [hparams.EXPERIMENT, *hparams.row({})]
    kinds = {info.name: str if info.type == DATA_TYPE_STRING else float for info in experiment.hparam_infos}
    assert kinds == {name: type(value) for name, value in values.items()}
    assert {info.name for info in experiment.hparam_infos if info.differs} == set(hparams.SHOWN_FIRST)
    files = list(Path(trainer.logger.log_dir).glob("events*"))
    return values, [info.name.tag for info in experiment.metric_infos], len(files)


def test_row_holds_settings_and_scores_and_is_replaced_by_a_run_that_goes_on(trainer):
    evaluated(trainer)
    config = Path(trainer.logger.log_dir) / "config.yaml"
    for steps in (200, 400):
        config.write_text(yaml.safe_dump({**CONFIG, "trainer": {"max_steps": steps}}))
        Dashboard().on_fit_end(trainer, Module())
        values, scores, files = row_of(trainer)
        assert values["max_steps"] == steps
        assert files == 2
    assert values["experiment"] == "mini_ade"
    assert values["ratios"] == "ade 1.0, coco 4.0"
    assert values["mixed"] == "yes"
    assert values["network.backbone.name"] == "r50"
    assert values["postprocess.semantic.merge"] == "max"
    assert values["optimization.lr"] == 0.0005
    assert values["weights"] == values["criterion.affinity_weight"] == "none"
    assert len(values) == 1 + len(hparams.SETTINGS)
    assert set(hparams.SHOWN_FIRST) <= set(values)
    assert scores == [f"metrics/{k}" for k in ("score", "ade.miou", "ade.pq", "ade.mask_ap", "ade_panoptic.pq")]


@pytest.mark.parametrize("change", [{"is_global_zero": False}, {"logger": None}])
def test_nothing_is_written_elsewhere(trainer, change, tmp_path):
    for key, value in change.items():
        setattr(trainer, key, value)
    dashboard = Dashboard()
    dashboard.on_train_batch_start(trainer, Module(), {"ade": None}, 0)
    dashboard.on_fit_end(trainer, Module())
    assert not list(tmp_path.rglob("events*"))


def test_a_run_without_a_configuration_has_no_row(trainer):
    Dashboard().on_fit_end(trainer, Module())
    assert not list(Path(trainer.logger.log_dir).glob(f"*{hparams.SUFFIX}"))


def leaves(content, path=()):
    """Dotted names of what a YAML file sets, as in `hparams.SETTINGS`."""
    if not isinstance(content, dict):
        return [".".join(key for key in path if key not in {"init_args", "class_path"})]
    return [leaf for key, value in content.items() for leaf in leaves(value, (*path, key))]


@pytest.mark.parametrize("overlay", sorted((CONF / "with").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_overlay_shows_in_the_row(overlay):
    changed = set(leaves(yaml.safe_load(overlay.read_text())))
    if changed != {"trainer.callbacks+"}:  # callbacks show in the experiment's name alone
        assert changed & set(hparams.SETTINGS)
