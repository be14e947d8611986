"""Try a model on a page, or compare two: any image, any class names, any task.

    dataseg demo runs/mini_all/version_0/checkpoints/best.ckpt
    dataseg demo separate.ckpt together.ckpt

Models are checkpoints of runs or what `dataseg.load` takes. Images are one's own, or those that the first run among the
models was validated on: with ground truth, and with the scores of that one image. The page is made with gradio
(``pip install 'dataseg[demo]'``), is served to this machine alone unless ``--host`` says otherwise, and asks nothing
of any other server.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from data_modules import formats
from data_modules.formats.reader import Reader
from data_modules.inspection.demo_answers import Demo
from data_modules.layout import find_missing, tell_skipped
from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint.load import is_run
from dataseg.cli.predict import ENCODER, device_of, load_model
from dataseg.config.build import Registry
from dataseg.config.renamed import with_current_names
from dataseg.deployment.from_run import config_of
from dataseg.deployment.registry import PACKAGES
from dataseg.structures import UserError


def validation_sets(
    checkpoint: Path, root: Path | None = None, packages: tuple[str, ...] = ()
) -> tuple[dict[str, Reader], Path, str]:
    """The validation sets that a run's configuration names and whose files are there.

    Args:
        checkpoint: of the run.
        root: folder that holds the datasets; None = as the configuration says.
        packages: whose readers the configuration may name, beside this project's.

    Returns:
        Readers by name, the folder, and a message about what is missing, if anything is.

    Raises:
        UserError: the configuration describes readers that cannot be built.
    """
    path = config_of(checkpoint)
    data = with_current_names(yaml.safe_load(path.read_text(encoding="utf-8")))["data"]["init_args"]
    known = {f"data_modules.formats.{name}": getattr(formats, name) for name in formats.__all__}
    build = Registry(known, packages).build
    readers: dict[str, Reader] = {
        name: build(Reader, section, f"{path}: data.val.{name}")  # type: ignore[type-abstract]
        for name, section in data["val"].items()
    }
    folder = root or Path(data["root"])
    if data.get("mini") and root is None:
        ensure(folder, build(MiniSpec, data["mini"], f"{path}: data.mini"))
    missing = find_missing(readers.items(), folder)
    for name, _ in missing:
        del readers[name]
    return readers, folder, tell_skipped(missing, len(readers) + len(missing), folder) if missing else ""


def _shown_names(sources: Sequence[str]) -> list[str]:
    """Of each model the part of its path that differs from the others' and tells it from them."""
    parts = [Path(source).parts for source in sources]
    common = next((k for k, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1), 0)
    return ["/".join(part for part in words[common:] if part != "checkpoints") for words in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is stopped."""
    parser = argparse.ArgumentParser(
        prog="dataseg demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="one or two: *.ckpt of a run, *.safetensors, or hf://owner/name")
    parser.add_argument(
        "--data", type=Path, help="folder that holds the datasets; default: as the run's config.yaml says"
    )
    parser.add_argument("--encoder", help=ENCODER)
    parser.add_argument("--packages", nargs="*", default=[], help=PACKAGES)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    options = parser.parse_args(arguments)
    if find_spec("gradio") is None:
        raise UserError("the page is made with gradio: pip install 'dataseg[demo]', or make demo CKPT=...")
    if len(options.models) > 2 or len(set(options.models)) < len(options.models):
        raise UserError(f"one model, or two different ones, can be looked at; got {' '.join(options.models)}")
    packages, device = tuple(options.packages), device_of(options.device)
    models = [load_model(source, options.encoder, packages).to(device) for source in options.models]
    readers: dict[str, Reader] = {}
    root, problem = Path(), "none of the models is a run: its config.yaml would name validation sets"
    run = next((Path(source) for source in options.models if is_run(Path(source))), None)
    if run is not None:
        readers, root, problem = validation_sets(run, options.data, packages)
    if problem:
        print(problem)
    demo = Demo(dict(zip(_shown_names(options.models), models, strict=True)), readers, root)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from data_modules.inspection.demo_page import serve

    serve(demo, options.host, options.port)
    return 0
