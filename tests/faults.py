"""A campaign of injected faults: every run must end in the promised way, and no checkpoint may be lost.

    python tests/faults.py --count 1000

Every fault is one run of the command line in a process of its own: one small network, four steps, three datasets.
A share of the runs is afterwards mended and resumed, and must come out as the run that nothing disturbed.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src"), str(ROOT)]

from cli_runs import arguments, finish, read, start, wait_until  # noqa: E402

from data_modules.annotation_index.build import CACHED_FROM  # noqa: E402
from data_modules.annotation_index.table import Index  # noqa: E402
from data_modules.mini import MiniSpec, ensure  # noqa: E402
from dataseg.checkpoint import files, validate  # noqa: E402
from dataseg.deployment.model_file import read_model  # noqa: E402
from dataseg.experiments.jobs import jobs_of  # noqa: E402
from dataseg.experiments.suite import load  # noqa: E402

STEPS = 4
OPTIONS = ["--data.batch_size=2", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=2"]
OPTIONS += ["--trainer.limit_val_batches=1"]
SECONDS = 120
"""A run that takes longer hangs."""

PARAMETERS = [
    "network.classifier.background",
    "network.classifier.projection.weight",
    "network.classifier.log_scale",
    "network.pixel_decoder.layers.0.attention.value_proj.weight",
    "network.pixel_decoder.mask_projection.bias",
    "network.transformer_decoder.query_features.weight",
    "network.transformer_decoder.layers.1.linear2.weight",
    "network.transformer_decoder.norm.weight",
]


class PromiseBrokenError(AssertionError):
    """A run ended otherwise than promised."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise PromiseBrokenError(what)


@dataclass
class Bench:
    """What all faults share.

    Attributes:
        suite: undamaged data.
        runs: folder of runs, on a small file system of its own if there is one.
        small: whether there is.
        done: folder of the undisturbed run.
        trace: of the undisturbed run.
        rng: of the fault.
    """

    suite: Path
    work: Path
    runs: Path
    small: bool
    done: Path
    trace: dict[int, dict] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)

    def clear(self) -> None:
        _empty(self.runs)
        for path in (self.work / "suite", self.work / "run"):
            shutil.rmtree(path, ignore_errors=True)
        (self.work / "run").mkdir()

    @property
    def output(self) -> Path:
        return self.work / "run" / "output"

    @property
    def out(self) -> Path:
        """What verbs other than fit write to, on the runs' file system."""
        return self.runs / "out"

    @property
    def folder(self) -> Path:
        return self.runs / "mini_all" / "test" / "checkpoints"

    def begin(self, *options: str, suite: Path | None = None):
        extra = [o for o in options if o.startswith("--trainer.callbacks+=")]
        plain = [o for o in options if o not in extra]
        args = arguments(suite or self.suite, self.runs, self.work / "run" / "trace", *OPTIONS, *plain, every_n_steps=1)
        return start([*args, *extra], self.output)

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def fill(self, room: int) -> Path:
        """Leave so many bytes free for runs, if they have a file system of their own; the file that takes the rest."""
        ballast = self.runs / "ballast"
        if self.small:
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                file.truncate(0)
                os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.runs).free - room))
        return ballast

    def damaged(self) -> Path:
        """A copy of the suite that may be damaged: files are links, to be replaced and not written to."""
        copy = self.work / "suite"
        shutil.copytree(self.suite, copy, copy_function=os.link)
        return copy

    def sample(self, datasets: tuple[str, ...]) -> tuple[int, str, str]:
        """A sample that the run uses: step (from 1), dataset and image id."""
        found = [
            (batch + 1, name, image_id)
            for batch, entry in self.trace.items()
            for name, (ids, *_) in entry["samples"].items()
            for image_id in ids
            if name in datasets
        ]
        return self.rng.choice(found)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def image_of(suite: Path, dataset: str, image_id: str) -> Path:
    match dataset:
        case "ade":
            return suite / "ADEChallengeData2016" / "images" / "training" / f"{image_id}.jpg"
        case "coco":
            return suite / "coco" / "train2017" / f"{int(image_id):012d}.jpg"
    records = json.loads((suite / "objects365" / "train" / "zhiyuan_objv2_train.json").read_text())["images"]
    name = Path(next(r["file_name"] for r in records if str(r["id"]) == image_id)).name
    return next((suite / "objects365" / "train").rglob(name))


def labels_of(suite: Path, dataset: str, image_id: str) -> Path:
    if dataset == "ade":
        return suite / "ADEChallengeData2016" / "annotations" / "training" / f"{image_id}.png"
    return suite / "coco" / "annotations" / "panoptic_train2017" / f"{int(image_id):012d}.png"


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    replace(path, json.dumps(content).encode())


# ---------------------------------------------------------------------------------------------- the promises


def ends_with_message(bench: Bench, *words: str) -> None:
    """Exit status 1, one message that holds the words, no traceback, and what checkpoints there are are good."""
    text = bench.text()
    require("error: " in text and "Traceback" not in text.rpartition("error: ")[2], f"no plain message: {text[-800:]}")
    for word in words:
        require(word in text.rpartition("error: ")[2], f"{word!r} is not in the message: {text[-800:]}")
    checkpoints_are_good(bench)


def checkpoints_are_good(bench: Bench) -> None:
    for path in files.step_files(bench.folder).values() if bench.folder.exists() else ():
        problem = validate.problem_of(path)
        require(problem is None, f"{path.name}: {problem}")


def goes_on(bench: Bench) -> None:
    """Once mended, the run comes to the same end as the undisturbed one."""
    code = finish(bench.begin("--resume=auto"), SECONDS)
    require(code == 0, f"resuming ended with {code}: {bench.text()[-800:]}")
    entries = [e for e in read(bench.work / "run" / "trace") if "batch" in e]
    require(len({e["batch"] for e in entries}) == STEPS, "steps are missing")
    for entry in entries:
        require(entry == bench.trace[entry["batch"]], f"step {entry['step']} came out differently")


def stops_or_skips(bench: Bench, suite: Path, name: str, title: str, at_once: bool = False) -> bool:
    """For a training sample that cannot be read; whether it can be mended and resumed.

    Args:
        at_once: what is amiss shows when the dataset is listed, before any sample is read: that always stops.
    """
    skip = bench.rng.random() < 0.5 and not at_once
    workers = bench.rng.choice([0, 0, 1])
    options = ["--data.on_error=skip"] if skip else []
    callback = json.dumps({"class_path": "callbacks.UnreadableSamples"})
    process = bench.begin(*options, f"--data.num_workers={workers}", f"--trainer.callbacks+={callback}", suite=suite)
    code = finish(process, SECONDS)
    if skip:
        require(code == 0, f"ended with {code}: {bench.text()[-800:]}")
        require("could not be read and were replaced" in bench.text() and name in bench.text(), "is not listed")
        checkpoints_are_good(bench)
        return False
    require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
    ends_with_message(bench, name, title)
    return True


TITLES = {"ade": "ADE20k", "coco": "COCO", "o365": "Objects365"}


def truncated_jpeg(bench: Bench) -> bool:
    suite = bench.damaged()
    _, dataset, image_id = bench.sample(("ade", "coco", "o365"))
    path = image_of(suite, dataset, image_id)
    content = path.read_bytes()
    replace(path, content[: bench.rng.randrange(len(content) - 2)])
    return stops_or_skips(bench, suite, path.name, TITLES[dataset])


def missing_file(bench: Bench) -> bool:
    suite = bench.damaged()
    _, dataset, image_id = bench.sample(("ade", "coco", "o365"))
    path = image_of(suite, dataset, image_id)
    if dataset == "ade" or (dataset == "coco" and bench.rng.random() < 0.5):  # ADE20k is the images that are there
        path = labels_of(suite, dataset, image_id)
    path.unlink()
    named = path.stem if dataset == "ade" else path.name  # an image of ADE20k is named, which lacks its label map
    return stops_or_skips(bench, suite, named, TITLES[dataset], at_once=dataset == "ade")


def map_of_another_size(bench: Bench) -> bool:
    suite = bench.damaged()
    _, dataset, image_id = bench.sample(("ade", "coco"))
    path = labels_of(suite, dataset, image_id)
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    rows, columns = labels.shape[:2]
    size = (columns + bench.rng.randint(1, 9), max(1, rows + bench.rng.randint(-9, 9)))
    changed = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    replace(path, cv2.imencode(".png", changed)[1].tobytes())
    return stops_or_skips(bench, suite, path.name, TITLES[dataset])


def unknown_category(bench: Bench) -> bool:
    suite = bench.damaged()
    _, dataset, image_id = bench.sample(("ade", "coco", "o365"))
    if dataset == "ade":
        path = labels_of(suite, dataset, image_id)
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        labels[bench.rng.randrange(labels.shape[0]), bench.rng.randrange(labels.shape[1])] = bench.rng.randint(160, 254)
        replace(path, cv2.imencode(".png", labels)[1].tobytes())
        return stops_or_skips(bench, suite, path.name, TITLES[dataset])
    number = bench.rng.choice([-1, 0, 999, 5000])
    file = suite / ("objects365/train/zhiyuan_objv2_train.json" if dataset == "o365" else COCO_JSON)

    def change(content: dict) -> None:
        record = bench.rng.choice(content["annotations"])
        (record if dataset == "o365" else bench.rng.choice(record["segments_info"]))["category_id"] = number

    rewrite(file, change)
    code = finish(bench.begin(suite=suite), SECONDS)
    require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
    ends_with_message(bench, file.name, str(number))
    return True


COCO_JSON = "coco/annotations/panoptic_train2017.json"


def box_outside(bench: Bench) -> bool:
    """Clipped or dropped: Objects365 has thousands of them; the run goes on."""
    suite = bench.damaged()

    def change(content: dict) -> None:
        for _ in range(bench.rng.randint(1, 4)):
            far = bench.rng.choice([-500, 60, 64, 1000])
            bench.rng.choice(content["annotations"])["bbox"] = [
                far,
                bench.rng.randint(-70, 70),
                9,
                bench.rng.randint(1, 90),
            ]

    rewrite(suite / "objects365" / "train" / "zhiyuan_objv2_train.json", change)
    code = finish(bench.begin(suite=suite), SECONDS)
    require(code == 0, f"ended with {code}: {bench.text()[-800:]}")
    checkpoints_are_good(bench)
    return False


def weights_not_a_number(bench: Bench) -> bool:
    settings = {"step": bench.rng.randrange(STEPS), "parameter": bench.rng.choice(PARAMETERS), "value": "nan"}
    spoil = json.dumps({"class_path": "cli_runs.Spoil", "init_args": settings})
    code = finish(bench.begin(f"--trainer.callbacks+={spoil}"), SECONDS)
    require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
    ends_with_message(bench, "not finite", f"step {settings['step']}", "make replay FILE=")
    files = list((bench.folder.parent / "replay").glob("*.pt"))
    require(len(files) == 2, f"replay files: {files}")
    return True


def full_disk(bench: Bench) -> bool:
    """A real one if there is a small file system: what is free is for a few checkpoints at most."""
    room = bench.rng.randint(0, 12 * 2**20)
    ballast = bench.fill(room)
    process = bench.begin()
    if bench.rng.random() < 0.3:  # room is made in between
        wait_until(lambda: "could not be written" in bench.text(), process, SECONDS)
        ballast.unlink(missing_ok=True)
    code = finish(process, SECONDS)
    text = bench.text()
    ballast.unlink(missing_ok=True)
    checkpoints_are_good(bench)
    if code == 0:
        require(STEPS in files.step_files(bench.folder), "the last checkpoint is missing")
        return False
    require(code == 1, f"ended with {code}: {text[-800:]}")
    require("could not be written" in text or "the disk is full" in text, f"does not say so: {text[-800:]}")
    done = [e["step"] for e in read(bench.work / "run" / "trace") if "batch" in e]
    written = files.step_files(bench.folder) if bench.folder.exists() else {}
    require(not done or not written or max(written) <= max(done), "a checkpoint of the future")
    leftovers = list(bench.folder.glob(".*.tmp")) if bench.folder.exists() else []
    require(not leftovers, f"left behind: {leftovers}")
    return True


def sigterm_during_validation(bench: Bench) -> bool:
    which = bench.rng.choice([1, 2])
    process = bench.begin(f"--data.num_workers={bench.rng.choice([0, 0, 1])}")
    trace = bench.work / "run" / "trace"
    wait_until(lambda: sum("validating" in e for e in read(trace)) >= which, process, SECONDS)
    time.sleep(bench.rng.random() * 0.1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    code = finish(process, SECONDS)
    late = any(e.get("validated") == STEPS for e in read(trace))
    require(code == 0 or (late and code == -signal.SIGTERM), f"ended with {code}: {bench.text()[-800:]}")
    require("Traceback" not in bench.text(), f"a traceback: {bench.text()[-800:]}")
    checkpoints_are_good(bench)
    require(max(files.step_files(bench.folder)) >= 2 * which - 1, "the checkpoint before the validation is missing")
    return True


def loading_process_killed(bench: Bench) -> bool:
    """As the kernel does where memory runs out; sometimes the run is asked to stop at the same time."""
    process = bench.begin(f"--data.num_workers={bench.rng.choice([1, 2])}")
    worker = _a_loading_process(bench, process)
    with contextlib.suppress(OSError):
        if worker:
            os.kill(worker, signal.SIGKILL)
        if bench.rng.random() < 0.3:
            os.kill(process.pid, signal.SIGTERM)
    code = finish(process, SECONDS)
    checkpoints_are_good(bench)
    if code == 0:  # it had done its work, or the run was stopped before it was missed
        require("Traceback" not in bench.text(), f"a traceback: {bench.text()[-800:]}")
        return True
    require(code in (1, -signal.SIGTERM), f"ended with {code}: {bench.text()[-800:]}")
    if code == 1:
        ends_with_message(bench, "a loading process was killed", "data.num_workers")
    return True


def _a_loading_process(bench: Bench, process) -> int | None:
    """Its number, a moment after the first one was started; None if all have ended."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def numbers() -> list[str]:
        return children.read_text().split() if children.exists() else []

    wait_until(numbers, process, SECONDS)
    time.sleep(bench.rng.random())
    found = numbers()
    return int(bench.rng.choice(found)) if found else None


def vanished_data(bench: Bench) -> bool:
    """Its file system is gone for a while."""
    suite = bench.damaged()
    process = bench.begin(f"--data.num_workers={bench.rng.choice([0, 1])}", suite=suite)
    moment = bench.rng.randrange(STEPS)
    wait_until(lambda: len(read(bench.work / "run" / "trace")) >= moment, process, SECONDS)
    suite.rename(suite.with_name("elsewhere"))
    code = finish(process, SECONDS)
    suite.with_name("elsewhere").rename(suite)
    if code != 0:  # else all had been read
        require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
        ends_with_message(bench, str(suite))
    shutil.rmtree(suite)
    return True


def replaced_between_stop_and_resume(bench: Bench) -> bool:
    """Another annotation or image than that which the run began with is told."""
    suite = bench.damaged()
    process = bench.begin(suite=suite)
    wait_until(lambda: bench.folder.exists() and files.step_files(bench.folder), process, SECONDS)
    process.kill()
    process.join()
    if bench.rng.random() < 0.5:
        name = "o365"

        def change(content: dict) -> None:
            image = content["annotations"][0]["image_id"]
            for record in content["annotations"]:
                record.update({"bbox": [1, 1, 20, 20]} if record["image_id"] == image else {})

        rewrite(suite / "objects365" / "train" / "zhiyuan_objv2_train.json", change)
    else:
        _, name, image_id = bench.sample(("ade", "coco", "o365"))
        path = image_of(suite, name, image_id)
        replace(path, path.read_bytes() + b"x")
    code = finish(bench.begin("--resume=auto", suite=suite), SECONDS)
    require(code == 0, f"ended with {code}: {bench.text()[-800:]}")
    require(f"{name}: 1 samples differ" in bench.text(), f"is not told: {bench.text()[-800:]}")
    return False


def clock_set_back(bench: Bench) -> bool:
    """All that a killed run has left seems to be written in a year."""
    process = bench.begin()
    wait_until(lambda: len(read(bench.work / "run" / "trace")) >= 2, process, SECONDS)
    process.kill()
    process.join()
    for path in (bench.runs, *bench.runs.rglob("*")):
        later = time.time() + 365 * 86400
        os.utime(path, (later, later), follow_symlinks=False)
    return True


def read_only_runs(bench: Bench) -> bool:
    """Only where runs have a file system of their own."""
    if not bench.small:
        return False
    mount = ["mount", "-o", "remount,ro", str(bench.runs)]
    require(subprocess.run(mount, check=False).returncode == 0, "cannot be mounted read-only")
    try:
        code = finish(bench.begin(), SECONDS)
    finally:
        subprocess.run([*mount[:2], "remount,rw", mount[3]], check=True)
    require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
    ends_with_message(bench, "read-only")
    return True


def memory_runs_out(bench: Bench) -> bool:
    """In a loading process that has sent something, whose address space is bounded from some moment on.

    Before, Python itself waits without end: `Thread.start` for a thread that has found no memory to begin with.
    """
    process = bench.begin("--data.num_workers=1")
    wait_until(lambda: read(bench.work / "run" / "trace"), process, SECONDS)
    worker = _a_loading_process(bench, process)
    if worker:
        with contextlib.suppress(OSError):
            size = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
            limit = int(size * bench.rng.uniform(0.5, 1.001))
            resource.prlimit(worker, resource.RLIMIT_AS, (limit, limit))
    code = finish(process, SECONDS)
    checkpoints_are_good(bench)
    if code != 0:  # else there was enough
        require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
        ends_with_message(bench, "memory ran out", "data.num_workers")
    return True


def _export(bench: Bench) -> list[str]:
    return ["export", str(bench.done / "checkpoints" / "last.ckpt"), "--out", str(bench.out / "model.safetensors")]


def _predict(bench: Bench) -> list[str]:
    images = bench.suite / "ADEChallengeData2016" / "images" / "validation"
    model = bench.done / "checkpoints" / "last.ckpt"
    return ["predict", f"--model={model}", "--dataset=coco", f"--images={images}", f"--out={bench.out}"]


def _report(bench: Bench) -> list[str]:
    """Of a suite whose only run is the undisturbed one."""
    columns = [{"metric": "ade.miou", "title": "mIoU"}]
    tables = [{"title": "Main", "rows": [{"exp": "mini_all", "steps": STEPS}]}]
    path, runs = bench.work / "tiny.yaml", bench.work / "suites"
    path.write_text(json.dumps({"title": "Tiny", "columns": columns, "tables": tables}))
    if not runs.exists():
        (job,) = jobs_of(load(path), 1, runs, conf=ROOT / "conf")
        shutil.copytree(bench.done, job.folder, symlinks=True)
    return ["report", f"--suite={path}", f"--runs={runs}", f"--out={bench.out / 'report'}"]


def _index(bench: Bench) -> list[str]:
    """A run whose annotation file is large enough for an index in the cache."""
    suite = bench.work / "suite"
    if not suite.exists():
        file = bench.damaged() / COCO_JSON
        replace(file, file.read_bytes() + b" " * CACHED_FROM)
    few = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--data.cache={bench.out}"]
    return arguments(suite, bench.work / "run", bench.work / "run" / "trace", *OPTIONS, *few, run="null")


VERBS = (_export, _predict, _report, _index)


def killed_within_another_verb(bench: Bench) -> bool:
    """What has its final name is whole, and the verb can be done again."""
    verb = bench.rng.choice(VERBS)(bench)
    process = start(verb, bench.output)
    time.sleep(4 * bench.rng.random())
    process.kill()
    process.join()
    _is_whole(bench.out)
    _can_be_done(bench, verb)
    return False


def full_disk_in_another_verb(bench: Bench) -> bool:
    verb = bench.rng.choice(VERBS)(bench)
    ballast = bench.fill(bench.rng.choice([0, 2**12, 2**16, 2**19]))
    code = finish(start(verb, bench.output), SECONDS)
    ballast.unlink(missing_ok=True)
    if code != 0:
        require(code == 1, f"ended with {code}: {bench.text()[-800:]}")
        require(re.search("disk is full|No space left", bench.text()) is not None, f"not told: {bench.text()[-800:]}")
        ends_with_message(bench)
        _is_whole(bench.out)
    _can_be_done(bench, verb)
    return False


def _can_be_done(bench: Bench, verb: list[str]) -> None:
    code = finish(start(verb, bench.output), SECONDS)
    require(code == 0, f"ended with {code}: {bench.text()[-800:]}")
    require("damaged" not in bench.text(), f"something was damaged: {bench.text()[-800:]}")
    require(_is_whole(bench.out) > 0, "nothing was written")


def _is_whole(folder: Path) -> int:
    """The number of files that have their final names, each of which can be read to its end."""
    found = [file for file in folder.rglob("*") if file.is_file() and not re.search(r"\.(tmp|lock)", str(file))]
    for file in found:
        match file.suffix:
            case ".safetensors":
                require(bool(read_model(file).weights), f"{file} has no weights")
            case ".png" | ".jpg":
                require(cv2.imread(str(file)) is not None, f"half of {file} was written")
            case ".json":
                json.loads(file.read_text())
            case ".arrow":
                require(len(Index.open(file)) > 0, f"{file} has no images")
            case ".html":
                require(file.read_text().rstrip().endswith("</html>"), f"half of {file} was written")
    return len(found)


KINDS: dict[str, Callable[[Bench], bool]] = {
    "truncated JPEG": truncated_jpeg,
    "missing file": missing_file,
    "id map of another size": map_of_another_size,
    "unknown category": unknown_category,
    "box outside the image": box_outside,
    "NaN weights": weights_not_a_number,
    "full disk while checkpointing": full_disk,
    "SIGTERM during validation": sigterm_during_validation,
    "loading process killed": loading_process_killed,
    "data folder vanishes": vanished_data,
    "dataset replaced before resuming": replaced_between_stop_and_resume,
    "clock set back": clock_set_back,
    "read-only folder of runs": read_only_runs,
    "memory runs out in loading": memory_runs_out,
    "SIGKILL in another verb": killed_within_another_verb,
    "full disk in another verb": full_disk_in_another_verb,
}


# ---------------------------------------------------------------------------------------------- the campaign


@dataclass
class Result:
    """Counts by kind, and every promise that was broken."""

    runs: Counter = field(default_factory=Counter)
    resumed: Counter = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{kind:32s} {self.runs[kind]:5d} {self.resumed[kind]:8d}" for kind in KINDS]
        head = f"{'fault':32s} {'runs':>5s} {'resumed':>8s}"
        total = (
            f"{self.runs.total()} faults, {self.resumed.total()} mended and resumed, {len(self.broken)} broken promises"
        )
        return "\n".join([head, *rows, total, *self.broken])


def campaign(
    count: int, seed: int, work: Path, small: Path | None, resumed_share: float, kinds=(), say=print
) -> Result:
    """Inject faults, in turn of all kinds, or of those named."""
    spec = MiniSpec(seed=3, size=64, ade=(6, 3), coco=(8, 3), objects365=(8, 5))
    suite = ensure(work / "mini", spec, progress=False)
    bench = Bench(suite, work, small or work / "runs", small is not None, work / "done")
    bench.runs.mkdir(exist_ok=True)
    bench.clear()
    require(finish(bench.begin(), SECONDS) == 0, "the undisturbed run failed")
    bench.trace = {e["batch"]: e for e in read(work / "run" / "trace") if "batch" in e}
    shutil.copytree(bench.folder.parent, bench.done, symlinks=True)
    result, begun = Result(), time.monotonic()
    for number in range(count):
        kind = (kinds or list(KINDS))[number % len(kinds or KINDS)]
        bench.rng = random.Random(f"{seed} {number}")
        bench.clear()
        try:
            can_go_on = KINDS[kind](bench)
            result.runs[kind] += 1
            if can_go_on and bench.rng.random() < resumed_share:
                goes_on(bench)
                result.resumed[kind] += 1
        except AssertionError as error:
            result.broken.append(f"{number} {kind}: {error}")
            say(result.broken[-1])
        except KeyboardInterrupt:  # what has been done is told
            break
        if number % 50 == 49:
            say(f"{number + 1} of {count}, {time.monotonic() - begun:.0f} s, {len(result.broken)} broken")
    return result


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resumed", type=float, default=0.2, help="share of the runs that is mended and resumed")
    parser.add_argument("--small", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="faults"))
    if options.small is None and shutil.which("unshare"):
        small = work / "small"
        small.mkdir()
        inner = [sys.executable, __file__, *sys.argv[1:], "--small", str(small)]
        script = 'mount -t tmpfs -o size=48m tmpfs "$1" && shift && exec "$@"'
        command = ["unshare", "-rm", "sh", "-c", script, "sh", str(small), *inner]
        trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(small)]
        if subprocess.run(trial, check=False, capture_output=True).returncode == 0:
            code = subprocess.run(command, check=False).returncode
            shutil.rmtree(work, ignore_errors=True)
            return code
    print("full disks are", "real" if options.small else "not injected: no file system can be mounted here")
    result = campaign(options.count, options.seed, work, options.small, options.resumed, options.kinds)
    print(result)
    shutil.rmtree(work, ignore_errors=True)
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
