"""The page of ``dataseg demo``, made with gradio."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from markupsafe import escape
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data_modules.inspection.demo_answers import OWN_NAMES, Answer, Demo, Example, rows_of, write_files
from dataseg.experiments.report.html import render
from dataseg.structures import VOID, SegmentMap, Target, Task, UserError, Vocabulary
from dataseg.visualization.grid import data_uri
from dataseg.visualization.legend import present
from dataseg.visualization.overlay import draw, resize_picture, shown_size
from dataseg.visualization.style import css_color

_SIDE = 960
"""Longer side of a picture at most, pixels."""

_FOLDER = Path(__file__).parent


def picture(image: NDArray[np.uint8], target: Target, vocabulary: Vocabulary, title: str, is_prediction: bool) -> str:
    """HTML of an overlay: each segment tells its class, score and size while the pointer is on it; with a legend."""
    height, width = image.shape[:2]
    drawn = resize_picture(image, shown_size(height, width, _SIDE))
    nothing = is_prediction and isinstance(target, SegmentMap) and bool((target.ids == VOID).any())
    return render(
        _FOLDER / "demo_picture.html.j2",
        title=title,
        width=width,
        height=height,
        image=data_uri(draw(drawn, target, vocabulary, is_prediction=is_prediction)),
        segments=_segments(target, vocabulary),
        legend=[(vocabulary.names[k], css_color(vocabulary.classes[k].color)) for k in present([target], vocabulary)],
        nothing=nothing,
    )


def _segments(target: Target, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Outline (an SVG path in pixels of the image) and caption of each segment, the largest first."""
    scores = getattr(target, "scores", None)
    found = []
    for k, label in enumerate(target.labels.tolist()):
        mask = _mask(target, k)
        area = 0 if mask is None else int(mask.sum())
        if mask is None or not area:
            continue
        outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        path = "".join("M" + "L".join(f"{x} {y}" for x, y in points[:, 0].tolist()) + "Z" for points in outlines)
        score = "" if scores is None else f", score {float(scores[k]):.2f}"
        found.append((area, path, f"{vocabulary.names[label]}{score}, {100 * area / mask.size:.1f} % of the image"))
    return [(path, caption) for _, path, caption in sorted(found, key=lambda entry: -entry[0])]


def _mask(target: Target, k: int) -> NDArray[np.uint8] | None:
    """Uint8 ``[H, W]``, 0 or 1; None where no mask is known."""
    if isinstance(target, SegmentMap):
        return (target.ids == k).numpy().astype(np.uint8)
    rle = getattr(target, "rles", {k: None})[k]
    return None if rle is None else coco_mask.decode(rle)


def _said(answer: Answer, truth: Example | None, task: Task) -> str:
    """Markdown: the scores of this image, or why there are none."""
    count = f"{len(answer.segments)} segment{'' if len(answer.segments) == 1 else 's'}"
    if answer.scores:
        scores = ", ".join(f"**{name} {value:.1f}**" for name, value in answer.scores.items())
        return f"{scores} on this image alone, percent; {count}"
    if truth is None:
        return f"{count}; no ground truth, no scores"
    if task not in truth.tasks:
        return f"{count}; no scores: the ground truth is not for the {task} task"
    return f"{count}; no scores: the ground truth has other classes"


def page(demo: Demo, folder: Path) -> gr.Blocks:
    """The page.

    Args:
        folder: for the files that are handed out.
    """
    tasks = [task.value for task in Task]
    blocks = gr.Blocks(title="dataseg", analytics_enabled=False)
    with blocks:
        gr.Markdown("# Two models, one image" if len(demo.models) > 1 else "# Any image, any classes, any task")
        truth = gr.State(None)
        with gr.Row():
            image = gr.Image(label="image", type="numpy", sources=["upload", "clipboard"], height=360, elem_id="image")
            with gr.Column():
                with gr.Group(visible=bool(demo.readers)):
                    with gr.Row():
                        dataset = gr.Dropdown(
                            list(demo.readers), label="validation set", elem_id="dataset", min_width=140
                        )
                        number = gr.Number(0, label="number", precision=0, minimum=0, elem_id="number", min_width=80)
                    with gr.Row():
                        take = gr.Button("take this image", size="md", elem_id="take", min_width=120)
                        following = gr.Button("take the next", size="md", elem_id="next", min_width=120)
                names = gr.Dropdown([*demo.datasets, OWN_NAMES], label="classes of", elem_id="names")
                words = gr.Textbox(
                    label="class names, separated by commas",
                    placeholder="dog, cat, grass",
                    visible=False,
                    elem_id="words",
                )
                task = gr.Radio(tasks, value=Task.PANOPTIC.value, label="task", elem_id="task")
                least = gr.Slider(
                    0, 1, demo.least_score(Task.PANOPTIC), step=0.05, label="smallest score", elem_id="least"
                )
                run = gr.Button("segment", variant="primary", elem_id="run")
        shown: list[Any] = []
        with gr.Row():
            for name in demo.models:
                with gr.Column(min_width=300, elem_classes="model"):
                    gr.Markdown(f"`{name}`")
                    shown += [gr.HTML(elem_classes="picture"), gr.Markdown(elem_classes="said")]
                    with gr.Row():
                        shown += [
                            gr.DownloadButton(label, size="sm", min_width=90, interactive=False)
                            for label in ("picture", "COCO JSON", "class ids, PNG")
                        ]
                    shown.append(
                        gr.Dataframe(headers=["class", "score", "% of image"], label="segments", max_height=300)
                    )
            with gr.Column(min_width=300, visible=False, elem_classes="truth") as beside:
                gr.Markdown("ground truth")
                expected = gr.HTML(elem_classes="picture")

        def segment(image: Any, truth: Any, names: str, words: str, task: str, least: float) -> list[Any]:
            updates: list[Any] = []
            for number, model in enumerate(demo.models):
                try:
                    if image is None:
                        raise UserError("give an image first")
                    chosen = _split(words) if names == OWN_NAMES else names
                    answer = demo.answer(model, image, chosen, Task(task), least, truth)
                except UserError as error:
                    blank = gr.DownloadButton(value=None, interactive=False)
                    updates += [f'<p class="problem">{escape(str(error))}</p>', "", *[blank] * 3, []]
                    continue
                files = write_files(folder / str(number), image, answer)
                updates += [
                    picture(image, answer.segments, answer.vocabulary, f"prediction of {model}", True),
                    _said(answer, truth, Task(task)),
                    *(gr.DownloadButton(value=str(file), interactive=True) for file in files),
                    rows_of(answer),
                ]
            return updates

        def example(dataset: str, number: float | None) -> list[Any]:
            found = demo.example(dataset, int(number or 0))
            task = found.tasks[-1] if Task.PANOPTIC not in found.tasks else Task.PANOPTIC
            return [
                found.image,
                found,
                picture(found.image, found.target, found.vocabulary, "ground truth", False),
                gr.Column(visible=True),
                dataset if dataset in demo.datasets else gr.skip(),
                task.value,
                score_of(task.value),
            ]

        def score_of(task: str) -> Any:
            used = Task(task) is not Task.SEMANTIC
            info = "" if used else "segments of the semantic task have no score"
            return gr.Slider(value=demo.least_score(Task(task)), interactive=used, info=info)

        asked = [image, truth, names, words, task, least]
        of_example = [image, truth, expected, beside, names, task, least]
        for button in (take, following):
            taken = button.click(lambda k: (k or 0) + 1, number, number) if button is following else None
            start = button.click if taken is None else taken.then
            start(example, [dataset, number], of_example).then(segment, asked, shown)
        own = image.input(lambda: (None, gr.Column(visible=False)), None, [truth, beside])
        own.then(segment, asked, shown)
        names.change(lambda chosen: gr.Textbox(visible=chosen == OWN_NAMES), names, words)
        task.input(score_of, task, least).then(segment, asked, shown)
        gr.on([run.click, words.submit, least.release], segment, asked, shown)
    return blocks


def _split(words: str) -> list[str]:
    names = [word.strip() for word in (words or "").split(",") if word.strip()]
    if not names:
        raise UserError("type class names, separated by commas, for example: dog, cat, grass")
    return names


def serve(demo: Demo, host: str, port: int) -> None:
    """Serve the page until it is stopped.

    Raises:
        UserError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="dataseg-demo-") as folder:
        blocks = page(demo, Path(folder))
        try:
            blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                css_paths=_FOLDER / "demo.css",
                footer_links=[],
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:  # gradio's, for a port that is taken
            raise UserError(f"cannot listen on {host}:{port} ({error}): choose another --port") from error
        print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
