"""Inference against transformers: our R50 network with its Mask2Former, our EoMT-S and B with its EoMT.

    python benchmarks/inference.py                       # needs: pip install transformers
    python benchmarks/inference.py --only r50 --batches 1 --repeats 3 --dry-run
    python benchmarks/inference.py --device cuda

Same random weights on both sides, and equal outputs, or the run stops. ``network``: normalised images -> logits.
``whole``: then panoptic post-processing to 480 x 640. Class logits of random weights are sure of nothing, so that
post-processing would have nothing to do: both sides get the same drawn ones there, ``CONFIDENT`` queries above the
threshold. Mask2Former sees 480 x 640 pixels; EoMT these in a square of 640, as transformers' processor pads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import torch
from _common import Report, peak_memory, ratio, side_by_side
from torch import Tensor, nn
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
)

from dataseg.checkpoint.state_dict_adapter import HUGGING_FACE, HUGGING_FACE_EOMT, translate
from dataseg.inference.postprocess import panoptic
from dataseg.network import (
    EncoderOnlyNetwork,
    LinearClassifier,
    MaskClassificationNetwork,
    PlainViT,
    SegmentationNetwork,
    TimmBackbone,
)
from dataseg.structures import ClassEmbeddings
from dataseg.structures.geometry import ImageGeometry

CLASSES, THINGS = 133, 80
CONFIDENT = 25
IMAGE = (480, 640)
SQUARE = (640, 640)
TOLERANCE = 2e-3
"""Largest difference of logits: float32 through up to nine decoder layers whose attention masks are thresholded."""

VITS = {"eomt_s": ("vit_small_patch14_reg4_dinov2", 384, 6), "eomt_b": ("vit_base_patch14_reg4_dinov2", 768, 12)}
"""timm's name, width, heads."""

Logits = tuple[Tensor, Tensor]
"""Class ``[B, Q, C + 1]`` and mask logits ``[B, Q, h, w]``."""


def input_size(model: str) -> tuple[int, int]:
    return IMAGE if model == "r50" else SQUARE


def make_theirs(model: str) -> nn.Module:
    torch.manual_seed(0)
    if model == "r50":
        resnet = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        config = Mask2FormerConfig(backbone_config=resnet, num_labels=CLASSES)
        return Mask2FormerForUniversalSegmentation(config).eval()
    _, width, heads = VITS[model]
    eomt = EomtConfig(
        hidden_size=width, num_hidden_layers=12, num_attention_heads=heads, num_blocks=3, num_labels=CLASSES
    )
    theirs = EomtForUniversalSegmentation(eomt).eval()
    theirs.attn_mask_probs.zero_()  # as after training: no query is masked
    return theirs


def make_ours(model: str, theirs: nn.Module) -> SegmentationNetwork:
    ours: SegmentationNetwork
    if model == "r50":
        backbone = TimmBackbone("resnet50", pretrained=False)
        ours = MaskClassificationNetwork(backbone, classifier=LinearClassifier(256, CLASSES))
        scheme = HUGGING_FACE
    else:
        vit = PlainViT(VITS[model][0], pretrained=False, options={"img_size": SQUARE[0]})
        ours = EncoderOnlyNetwork(vit, num_blocks=3, classifier=LinearClassifier(vit.width, CLASSES))
        scheme = HUGGING_FACE_EOMT
    tensors = translate(theirs.state_dict(), scheme).tensors
    if "backbone.vit.pos_embed" in tensors:
        tensors["backbone.vit.pos_embed"] = tensors["backbone.vit.pos_embed"][None]  # a table there
    missing = ours.load_state_dict(tensors, strict=False).missing_keys
    assert set(missing) <= {"pixel_mean", "pixel_std", "mask_probability"}, missing
    return ours.eval()


def network_of(name: str, model: str, batch: int, device: str) -> Callable[[], Logits]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *input_size(model), generator=generator).to(device)
    if name == "transformers":
        theirs = make_theirs(model).to(device)

        def run_theirs() -> Logits:
            outputs = theirs(images)
            return outputs.class_queries_logits, outputs.masks_queries_logits

        return run_theirs
    ours = make_ours(model, make_theirs(model)).to(device)
    classes = ClassEmbeddings(torch.zeros(CLASSES, 1), torch.arange(CLASSES)).to(torch.device(device))

    def run() -> Logits:
        result = ours.classify(ours.decode(images)[-1:], classes)[0]
        return result.class_logits, result.mask_logits

    return run


def postprocessing_of(name: str, model: str) -> Callable[[Logits], object]:
    """Panoptic segments of each image, of Mask2Former's thresholds."""
    if name == "ours":
        geometry, is_thing = ImageGeometry(input_size(model), IMAGE, IMAGE), torch.arange(CLASSES) < THINGS
        return lambda logits: [panoptic(c, m, geometry, is_thing.to(c.device)) for c, m in zip(*logits, strict=True)]
    stuff = set(range(THINGS, CLASSES))
    processor = Mask2FormerImageProcessor() if model == "r50" else EomtImageProcessor()

    def run(logits: Logits) -> object:
        outputs = SimpleNamespace(class_queries_logits=logits[0], masks_queries_logits=logits[1])
        sizes = [IMAGE] * len(logits[0])
        common = {"threshold": 0.8, "target_sizes": sizes}
        if isinstance(processor, Mask2FormerImageProcessor):
            return processor.post_process_panoptic_segmentation(outputs, label_ids_to_fuse=stuff, **common)
        size = {"shortest_edge": SQUARE[0], "longest_edge": SQUARE[1]}
        return processor.post_process_panoptic_segmentation(outputs, stuff_classes=sorted(stuff), size=size, **common)

    return run


def drawn_classes(batch: int, queries: int, device: str) -> Tensor:
    """Class logits ``[B, Q, C + 1]``, of which ``CONFIDENT`` queries an image are sure of a class."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.zeros(batch, queries, CLASSES + 1)
    logits[..., -1] = 20
    for image in logits:
        chosen = torch.randperm(queries, generator=generator)[:CONFIDENT]
        image[chosen, torch.randint(0, CLASSES, (CONFIDENT,), generator=generator)] = 30
    return logits.to(device)


def contender(name: str, part: str, model: str, batch: int, device: str) -> Callable[[], object]:
    network = network_of(name, model, batch, device)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    postprocess = postprocessing_of(name, model)
    with torch.inference_mode():
        classes = drawn_classes(batch, network()[0].shape[1], device)

    @torch.inference_mode()
    def run() -> object:
        logits = network()
        result = logits if part == "network" else postprocess((classes, logits[1]))
        finish()
        return result

    return run


def memory(name: str, part: str, model: str, batch: int, device: str) -> float:
    """Of a contender, for a process of its own."""
    return peak_memory(contender(name, part, model, batch, device), device)


def bench(report: Report, model: str, batch: int, device: str, repeats: int) -> None:
    subject = f"{model}_batch{batch}"
    runs = {
        f"{name} {part}": contender(name, part, model, batch, device)
        for part in ("network", "whole")
        for name in ("ours", "transformers")
    }
    pairs = zip(runs["ours network"](), runs["transformers network"](), strict=True)  # type: ignore[call-overload]
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    if difference > TOLERANCE:
        raise SystemExit(f"{subject}: logits differ by {difference}: not the same network")
    seconds = side_by_side(runs, repeats)
    report.add_medians(f"{subject}, seconds", seconds)
    for part in ("network", "whole"):
        value = ratio(seconds[f"transformers {part}"], seconds[f"ours {part}"])
        report.add(f"{subject}_{part}_vs_transformers", value, f"transformers' time / ours, {part}")
    share = 1 - ratio(seconds["ours network"], seconds["ours whole"])
    report.add(f"{subject}_postprocessing_share", share, "of the whole, ours")
    peaks: dict[str, list[float]] = {}
    for name in ("ours", "transformers"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = [pool.submit(memory, name, "whole", model, batch, device).result()]
    report.add_medians(f"{subject}, peak MB", peaks)
    value = peaks["transformers"][0] / peaks["ours"][0]
    report.add(f"{subject}_memory_vs_transformers", value, "transformers' peak memory / ours, whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", choices=["r50", *VITS], nargs="+", default=["r50", *VITS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    settings = vars(options) | {"image": IMAGE, "classes": CLASSES, "confident_queries": CONFIDENT}
    del settings["dry_run"]
    name = "inference" if options.device == "cpu" else "inference_cuda"
    report = Report(name, settings, ("transformers", "timm"))
    for model in options.only:
        for batch in options.batches:
            bench(report, model, batch, options.device, options.repeats)
    report.finish(write=not options.dry_run)


if __name__ == "__main__":
    main()
