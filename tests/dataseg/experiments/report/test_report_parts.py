"""Pictures, curves and configuration differences of a report."""

import io

import numpy as np
import pytest
from fake_suite import write_events
from PIL import Image

from dataseg.config.diff import differences
from dataseg.experiments.report.examples import data_uris
from dataseg.experiments.report.tensorboard_events import read_events


def test_events_are_joined_over_files_without_the_pause(tmp_path):
    write_events(tmp_path, {"ade": 1}, steps=3, seed=0)
    first = read_events(tmp_path)
    assert [step for step, _ in first.scalars["loss/ade/total"]] == [1, 2, 3]
    assert first.last("sampling/ade") == pytest.approx(1.01)
    assert first.last("sampling/none") is None
    assert Image.open(io.BytesIO(first.pictures["ade.semantic/image_1"])).size == (400, 120)
    (tmp_path / "events.out.tfevents.9999999999.later").write_bytes(b"")
    write_events(tmp_path, {"ade": 1}, steps=5, seed=1)
    both = read_events(tmp_path)
    assert [step for step, _ in both.scalars["loss/ade/total"]] == [1, 2, 3, 4, 5]
    assert first.seconds <= both.seconds < 60


def test_events_that_break_off_are_read_as_far_as_they_go(tmp_path):
    write_events(tmp_path, {"ade": 1}, steps=20, seed=0)
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:1000])
    steps = [step for step, _ in read_events(tmp_path).scalars["loss/ade/total"]]
    assert steps == list(range(1, len(steps) + 1))
    assert 0 < len(steps) < 20


def test_pictures_fit_the_budget_as_often_as_they_are_shown():
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(3):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (200, 1200, 3), np.uint8)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    shown = [*pictures, pictures[0]]
    full = data_uris(shown, 10**9)
    assert set(full) == set(pictures)
    for budget in (300_000, 100_000, 5_000):
        uris = data_uris(shown, budget)
        assert sum(len(uris.get(picture, "")) for picture in shown) <= budget
    assert data_uris([b"no picture"], 1000) == {}


def test_differences_of_configurations():
    base = {
        "seed_everything": 0,
        "run": "a",
        "trainer": {"max_steps": 5, "callbacks": [{"class_path": "callbacks.Panels", "init_args": {"images": 4}}]},
        "data": {"class_path": "data_modules.CoTraining", "init_args": {"root": "/a", "ratios": {"ade": 1}}},
        "text": {"class_path": "A", "init_args": {"x": 1}},
    }
    other = {
        "seed_everything": 1,
        "run": "b",
        "trainer": {"max_steps": 5, "callbacks": [{"class_path": "callbacks.Panels", "init_args": {"images": 2}}]},
        "data": {
            "class_path": "data_modules.CoTraining",
            "init_args": {"root": "/b", "ratios": {"ade": 1, "coco": 4.0}},
        },
        "text": {"class_path": "B"},
    }
    assert differences([base, base]) == {}
    assert differences([base, other]) == {
        "trainer.callbacks.Panels.images": ["4", "2"],
        "data.ratios.coco": ["\N{EN DASH}", "4.0"],
        "text": ["A(x=1)", "B()"],
    }
