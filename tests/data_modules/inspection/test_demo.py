"""The demo: what is handed out is what the predictor gives, and the page works in a browser."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_runs import SMALL, free_port
from PIL import Image
from pycocotools.coco import COCO
from tiny_model import HashText, make_model

from data_modules import formats
from data_modules.inspection import demo, demo_answers
from data_modules.mini import MiniSpec, ensure
from data_modules.vocabularies import load as load_vocabulary
from dataseg.cli import co_training, export
from dataseg.cli.__main__ import main as dataseg_command
from dataseg.deployment.model_file import write_model
from dataseg.deployment.predictor import load
from dataseg.structures import SegmentMap, Task, UserError
from dataseg.text.cache import TextCache

ROOT = Path(__file__).resolve().parents[3]
MINI = load_vocabulary("mini_coco")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ensure(folder, MiniSpec(seed=3, size=64, ade=(3, 2), coco=(3, 2), objects365=(3, 2)), progress=False)
    return folder


@pytest.fixture(scope="module")
def shown(data, tmp_path_factory) -> demo_answers.Demo:
    names = sorted({prompt for spec in MINI.classes for prompt in spec.prompts})
    metadata = make_model().text.metadata
    text = TextCache(HashText().encode(names), {name: row for row, name in enumerate(names)}, metadata)
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    write_model(path, make_model(vocabularies={"coco": MINI}, text=text))
    return demo_answers.Demo(
        {"a": load(path)}, {"coco": formats.CocoPanoptic("coco", "val2017", vocabulary="mini_coco")}, data
    )


def test_the_scores_are_of_this_image(shown):
    """mIoU by its formula: intersection over union by class, mean over the classes that occur in either map."""
    example = shown.example("coco", 2)
    assert example.tasks == (Task.SEMANTIC, Task.PANOPTIC)
    np.testing.assert_array_equal(example.image, shown.example("coco", 0).image)  # there are two
    answer = shown.answer("a", example.image, "coco", Task.SEMANTIC, 0.5, example)
    predicted, wanted = (m.class_map().numpy() for m in (answer.segments, example.target))
    inside = wanted >= 0
    classes = np.union1d(predicted[inside], wanted[inside])
    found = [
        ((predicted == c) & (wanted == c)).sum() / (((predicted == c) | (wanted == c)) & inside).sum() for c in classes
    ]
    assert next(iter(answer.scores.items())) == ("miou", pytest.approx(100 * np.mean(found)))
    assert shown.answer("a", example.image, "coco", Task.INSTANCE, 0.5, example).scores == {}
    names = [spec.name for spec in MINI.classes][:2]
    assert shown.answer("a", example.image, names, Task.SEMANTIC, 0.5, example).scores == {}


def test_the_smallest_score_is_the_model_s_own_or_what_is_asked_for(shown):
    model, image = shown.models["a"], shown.example("coco", 0).image
    assert shown.least_score(Task.PANOPTIC) == model.postprocess.panoptic.score_threshold == 0.0
    every = shown.answer("a", image, "coco", Task.PANOPTIC, 0.0)
    assert np.array_equal(every.segments.ids, model(image, "coco", "panoptic").ids)
    middle = float(every.segments.scores.median())
    fewer = shown.answer("a", image, "coco", Task.PANOPTIC, middle).segments
    assert 0 < len(fewer) < len(every.segments)
    assert fewer.scores.min() >= middle
    assert model.postprocess.panoptic.score_threshold == 0.0


def test_the_network_is_asked_once_for_an_image_and_its_classes(shown):
    model, image = shown.models["a"], shown.example("coco", 1).image
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    words = [spec.name for spec in MINI.classes][:3]
    for names in ("coco", words, "coco"):
        for task, least in ((Task.PANOPTIC, 0.0), (Task.PANOPTIC, 0.3), (Task.SEMANTIC, 0.5), (Task.INSTANCE, 0.0)):
            shown.answer("a", image, names, task, least)
    shown.answer("a", image[::-1], "coco", Task.SEMANTIC, 0.5)
    handle.remove()
    assert len(calls) == 3  # two vocabularies, another image
    kept = shown.answer("a", image, words, Task.INSTANCE, 0.0).segments
    np.testing.assert_array_equal(kept.scores, model(image, words, Task.INSTANCE).scores)


@pytest.mark.parametrize("task", list(Task))
def test_files_are_what_others_read(shown, task, tmp_path):
    image = shown.example("coco", 0).image
    answer = shown.answer("a", image, "coco", task, 0.0)
    picture, annotations, labels = demo_answers.write_files(tmp_path, image, answer)
    assert np.asarray(Image.open(picture)).shape == image.shape
    coco = COCO(str(annotations))
    masks = [coco.annToMask(coco.anns[k]) for k in sorted(coco.anns)]
    assert len(masks) == len(answer.segments) == len(demo_answers.rows_of(answer)) > 0
    values = np.asarray(Image.open(labels))
    wanted = np.zeros_like(values)
    scores = answer.segments.scores
    for k in range(len(masks)) if scores is None else np.argsort(scores.numpy(), kind="stable"):
        wanted[masks[k] > 0] = coco.anns[k + 1]["category_id"]
        assert masks[k].sum() == coco.anns[k + 1]["area"]
    np.testing.assert_array_equal(values, wanted)
    assert isinstance(answer.segments, SegmentMap) == (task is not Task.INSTANCE)


def run_folder(tmp_path: Path, **val: dict) -> Path:
    """A checkpoint's path beside a configuration."""
    sections = {k: {"class_path": v.pop("class_path"), "init_args": v} for k, v in val.items()}
    config = {"data": {"init_args": {"val": sections, "root": "nowhere", "mini": None}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "a.ckpt"


def test_validation_sets_are_those_of_the_run_that_are_there(data, tmp_path):
    one = {"class_path": "data_modules.formats.CocoPanoptic", "split": "val2017", "vocabulary": "mini_coco"}
    run = run_folder(tmp_path, coco=one, other=one | {"root": "elsewhere"})
    readers, root, problem = demo.validation_sets(run, data)
    assert (list(readers), root) == (["coco"], data)
    assert "1 of 2 evaluation sets are not below" in problem
    assert "other" in problem
    with pytest.raises(UserError, match=r"data\.val\.bad cannot be built.*os\.system.*not of this project"):
        demo.validation_sets(run_folder(tmp_path, bad={"class_path": "os.system"}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.ckpt", "b.ckpt", "c.ckpt"], "one model, or two different ones"),
        (["a.ckpt", "a.ckpt"], "one model, or two different ones"),
        (["missing.ckpt"], "there is no such checkpoint"),
    ],
)
def test_mistakes_are_one_message(words, message, monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: True)
    assert dataseg_command(["demo", *words]) == 1
    assert message in capsys.readouterr().err
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert dataseg_command(["demo", *words]) == 1
    assert "pip install 'dataseg[demo]'" in capsys.readouterr().err


def test_models_are_shown_under_what_tells_them_apart():
    paths = ["runs/ade/version_0/checkpoints/best.ckpt", "runs/all/version_0/checkpoints/best.ckpt"]
    assert demo._shown_names(paths) == ["ade/version_0/best.ckpt", "all/version_0/best.ckpt"]
    assert demo._shown_names(["runs/a.ckpt"]) == ["runs/a.ckpt"]


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(data, tmp_path_factory):
    """A run and its exported model side by side, served by the command."""
    pytest.importorskip("gradio", reason="the page is made with gradio: pip install -e '.[demo-test]'")
    base, port = tmp_path_factory.mktemp("run"), free_port()
    options = ["--exp=small", "--run=test", f"--runs={base}", f"--data.root={data}", "--data.mini=null", *SMALL]
    sizes = ["--data.train_transform.image_size=64", "--data.eval_transform.size=64", "--data.batch_size=2"]
    short = [
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
    ]
    with contextlib.chdir(ROOT):
        threshold = "--model.postprocess.panoptic.score_threshold=0.0"
        overlap = "--model.postprocess.panoptic.overlap_threshold=0.0"
        config = f"--config={ROOT / 'conf' / 'exp' / 'mini_all.yaml'}"
        co_training.run(["fit", config, *options, *sizes, *short, threshold, overlap])
        run, exported = base / "small" / "test" / "checkpoints" / "best.ckpt", base / "m.safetensors"
        assert export.main([str(run), "--out", str(exported)]) == 0
    words = [sys.executable, "-m", "dataseg.cli", "demo", str(run), str(exported), "--port", str(port)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    server = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    lines = []
    while not any("http://" in line for line in lines):
        lines.append(server.stdout.readline())
        assert lines[-1], "".join(lines)  # empty: it has ended
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def tab(address):
    """The page in headless Chromium; no request may leave this machine."""
    reason = "the browser is driven by playwright: pip install -e '.[demo-test]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 400, "height": 900})
        asked: set[str] = set()
        tab.on("request", lambda request: asked.add(request.url.split("/")[2] if "//" in request.url else ""))
        tab.set_default_timeout(60_000)
        tab.goto(address)
        yield tab
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
        assert asked <= {"", address.removeprefix("http://")}


POINT_ON = """path => {
    path.scrollIntoView({block: "center"})
    const box = path.getBoundingClientRect()
    for (let y = box.top + 1; y < box.bottom; y += 2)
        for (let x = box.left + 1; x < box.right; x += 2)
            if (document.elementFromPoint(x, y) === path) return [x, y]
}"""


def choose(tab, where: str, what: str) -> None:
    tab.locator(f"{where} input").click()
    tab.get_by_role("option", name=what, exact=True).click()


@pytest.mark.slow
def test_two_models_on_a_validation_image(tab, tmp_path):
    choose(tab, "#dataset", "coco")
    tab.locator("#take").click()
    tab.locator(".truth .overlay g").first.wait_for()
    for k in range(2):
        model = tab.locator(".model").nth(k)
        model.locator(".overlay g").first.wait_for()
        assert "pq" in model.locator(".block.said").inner_text()
    pictures = [tab.locator(".model .overlay").nth(k).inner_html() for k in range(2)]
    assert pictures[0] == pictures[1]  # one network, in two files
    segment = tab.locator(".model").first.locator(".overlay g").first
    assert not segment.locator("text").is_visible()
    tab.mouse.move(*segment.locator("path").evaluate(POINT_ON))
    assert "score 0." in segment.locator("text").text_content()
    assert segment.locator("text").is_visible()
    for label, suffix in (("picture", ".png"), ("COCO JSON", ".json"), ("class ids, PNG", ".png")):
        with tab.expect_download() as download:
            tab.locator(".model").first.get_by_role("button", name=label).click()
        assert download.value.suggested_filename.endswith(suffix)
        download.value.save_as(tmp_path / label)
    record = json.loads((tmp_path / "COCO JSON").read_text())
    assert len(record["annotations"]) == tab.locator(".model").first.locator(".overlay g").count()
    tab.locator("#least input[type=number]").fill("1")
    tab.locator("#run").click()
    tab.get_by_text("0 segments").first.wait_for()
    assert "nothing predicted" in tab.locator(".model .legend").first.inner_text()


@pytest.mark.slow
def test_an_image_and_names_of_ones_own(tab, tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 64)).save(tmp_path / "a.png")
    tab.locator("#image input[type=file]").set_input_files(tmp_path / "a.png")
    tab.locator(".model .overlay").first.wait_for()
    tab.get_by_text("no ground truth").first.wait_for()
    choose(tab, "#names", demo_answers.OWN_NAMES)
    tab.locator("#run").click()
    tab.get_by_text("type class names").first.wait_for()
    tab.locator("#words textarea").fill("zebra, sky")
    tab.locator("#run").click()
    problem = tab.locator(".problem", has_text="no text vectors of ['zebra']").first
    problem.wait_for()
    assert "words it has vectors of" in problem.inner_text()
    tab.locator("#words textarea").fill("bus, sky")
    tab.get_by_label("semantic").click()
    tab.get_by_text("no ground truth").first.wait_for()
    names = set(tab.locator(".model .legend").first.inner_text().split())
    assert names
    assert names <= {"bus", "sky"}
