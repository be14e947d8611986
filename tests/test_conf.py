"""Every YAML under conf/ is built: a typo, a renamed argument or a class that is gone shows here."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from data_modules import CoTraining
from data_modules.formats import Reader
from dataseg.cli.co_training import CoTrainingCLI
from dataseg.structures import ClassEmbeddings
from dataseg.training.module import CoTrainedSegmenter

CONF = Path(__file__).resolve().parents[1] / "conf"
EXPERIMENTS = sorted((CONF / "exp").glob("*.yaml"))
MODELS = sorted((CONF / "model").glob("*.yaml"))
READERS = sorted((CONF / "data").rglob("*.yaml"))
OVERLAYS = sorted((CONF / "strategy").glob("*.yaml"))
METHODS = sorted((CONF / "with").glob("*.yaml"))
ON = sorted((CONF / "on").glob("*.yaml"))
SUITES = sorted((CONF / "suite").glob("*.yaml"))  # loaded by test_ablation


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(CONF.parent)  # paths such as the text cache are relative to it


def ids(path: Path) -> str:
    return str(path.relative_to(CONF))


def test_no_yaml_is_forgotten():
    bases = {CONF / "base.yaml", CONF / "own.yaml"}  # what others extend; own.yaml: see test_own_data.py
    built = {*bases, *EXPERIMENTS, *MODELS, *READERS, *OVERLAYS, *METHODS, *ON, *SUITES}
    assert built == set(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("path", READERS, ids=ids)
def test_reader(path: Path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reader, "reader")
    reader = parser.instantiate(parser.parse_args([f"--reader={path}"])).reader
    assert isinstance(reader, Reader)
    assert len(reader.vocabulary) > 1


@pytest.mark.parametrize("path", MODELS, ids=ids)
def test_model(path: Path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CoTrainedSegmenter, "model", skip={"datasets"}, instantiate=False)
    config = parser.parse_args([f"--model={path}", "--model.network.backbone.pretrained=false"])
    with torch.device("meta"):  # ViT-L is large, and only its construction is of interest
        model = parser.instantiate(Namespace(model=config.model)).model
    assert sum(p.numel() for p in model["network"].parameters()) > 1e5


class Parsed(CoTrainingCLI):
    """Parses and checks everything, builds and runs nothing."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def build(key: str, config: Namespace):
    """One part of a parsed configuration."""
    parser = ArgumentParser(exit_on_error=False)
    if key == "data":
        parser.add_subclass_arguments(pl.LightningDataModule, "data")
    else:
        parser.add_argument("--callbacks", type=list[pl.Callback])
    return parser.instantiate(Namespace(**{key: config}))[key]


def parse(paths: list[Path], *more: str) -> Parsed:
    return Parsed(
        CoTrainedSegmenter,
        pl.LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        run=False,
        args=[*(f"--config={path}" for path in paths), *more],
    )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=ids)
def test_experiment(path: Path):
    config = parse([path]).config
    data = build("data", config.data)
    assert isinstance(data, CoTraining)
    assert set(data.train_readers) == set(data.ratios)
    assert data.tasks
    assert config.trainer.max_steps > 0
    callbacks = build("callbacks", config.trainer.callbacks)
    assert len(callbacks) > 5
    assert all(isinstance(callback, pl.Callback) for callback in callbacks)


@pytest.mark.parametrize("path", OVERLAYS, ids=ids)
def test_overlay_goes_with_an_experiment(path: Path):
    cli = parse([CONF / "exp" / "mini_all.yaml", path])
    for key in yaml.safe_load(path.read_text()):
        assert key in cli.config


def random_vectors(width: int):
    """Stands in for the text embeddings, whose encoder is a download."""

    def text(vocabulary) -> ClassEmbeddings:
        count = len(vocabulary)
        return ClassEmbeddings(torch.randn(count, width), torch.arange(count), count, vocabulary.name)

    text.provenance = "random"
    return text


@pytest.mark.parametrize("experiment", ["mini_all", "r50_all"])
@pytest.mark.parametrize("path", METHODS, ids=ids)
def test_method_overlay_is_built_on(path: Path, experiment: str):
    assert path.read_text().startswith("# ")
    cli = parse([CONF / "exp" / f"{experiment}.yaml", path])
    data = build("data", cli.config.data)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CoTrainedSegmenter, "model", skip={"datasets", "text"}, instantiate=False)
    config = cli.config.model.clone()
    config.network.init_args.backbone.init_args.pretrained = False
    del config["text"]
    with torch.device("meta" if experiment == "r50_all" else "cpu"):
        parts = parser.instantiate(Namespace(model=config)).model
        text = random_vectors(parts["network"].classifier.text_dim)
        model = CoTrainedSegmenter(**parts, text=text, datasets=data.specs)
    assert sum(p.numel() for p in model.parameters()) > 1e5


@pytest.mark.parametrize("path", ON, ids=ids)
def test_evaluation_overlay_names_every_set_of_the_experiment(path: Path):
    experiment = CONF / "exp" / ("mini_all.yaml" if path.stem == "mini_all" else "r50_all.yaml")
    plain, overlaid = (build("data", parse([experiment, *more]).config.data) for more in ([], [path]))
    overlaid.missing = "stop"  # on all, whatever this disk holds
    assert set(plain.tasks) < set(overlaid.tasks)
    assert {name: overlaid.vocabularies[name] for name in plain.tasks} == plain.vocabularies


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("--trainer.max_stepz=3", "trainer.max_steps"),
        ("--trainer.max_step=3", "trainer.max_steps"),
        ("--data.ratioz.ade=1", "ratios"),
        ("--data.train_transform.flipp=true", "train_transform.flip"),
        ("--data.train.coco.splitt=x", "split"),
        ("--model.network.num_querys=1", "num_queries"),
        ("--model.network.backbone.nam=x", "name"),
        ("--trainer.callbacks.monitr=coco.pq", "monitor"),
    ],
)
def test_misspelt_overrides_are_refused_with_the_nearest(wrong: str, meant: str):
    with pytest.raises(ArgumentError) as stop:
        parse([CONF / "exp" / "mini_all.yaml"], wrong)
    assert f"did you mean {meant}?" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert len(str(stop.value)) < 600


def test_what_a_class_passes_on_is_told_apart_from_its_own_settings(tmp_path):
    section = "{class_path: lightning.pytorch.profilers.PyTorchProfiler, init_args: {schedule: null}}"
    (tmp_path / "profile.yaml").write_text(f"trainer: {{profiler: {section}}}")
    with pytest.raises(ArgumentError, match=r"has no setting schedule.*what it passes on stands in dict_kwargs"):
        parse([CONF / "exp" / "mini_all.yaml", tmp_path / "profile.yaml"])
