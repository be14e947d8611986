import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from transformers.models.mask2former.image_processing_mask2former import Mask2FormerImageProcessor

from dataseg.inference.mask_resampling import strips
from dataseg.inference.postprocess import (
    ImageGeometry,
    InstanceOptions,
    PanopticOptions,
    PostProcessor,
    _row_of_largest,
    instance,
    panoptic,
    semantic,
)
from dataseg.structures import VOID, Batch, InstanceMasks, Proposals, SegmentMap, Task

CANVAS = ImageGeometry(padded=(64, 96), size=(50, 77), original=(71, 103))
IS_THING = torch.tensor([True, False, True, False])


def proposals(queries=9, cells=(16, 24), classes=4, seed=0, sharpness=4.0):
    """Smooth masks and confident classes."""
    generator = torch.Generator().manual_seed(seed)
    masks = F.interpolate(torch.randn(1, queries, 4, 6, generator=generator), size=cells, mode="bilinear")[0]
    logits = torch.randn(queries, classes + 1, generator=generator) * sharpness
    return logits, 8 * masks


def resized(masks, geometry):
    """As Mask2Former does it, all at once."""
    masks = F.interpolate(masks[None], geometry.padded, mode="bilinear", align_corners=False)
    masks = masks[..., : geometry.size[0], : geometry.size[1]]
    return F.interpolate(masks, geometry.output, mode="bilinear", align_corners=False)[0]


def sides(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(deadline=None, max_examples=60)
@given(cells=sides(1, 12), size=sides(1, 48), extra=sides(0, 16), original=sides(1, 90), budget=st.integers(1, 20_000))
def test_strips_equal_resizing_at_once(cells, size, extra, original, budget):
    geometry = ImageGeometry((size[0] + extra[0], size[1] + extra[1]), size, original)
    masks = torch.randn(3, *cells, generator=torch.Generator().manual_seed(1))
    found = list(strips(geometry, masks, budget))
    joined = torch.cat([strip for _, strip in found], 1)
    assert joined.shape == (3, *original)
    assert joined.dtype == torch.float32
    assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(original[0]))
    assert all(strip.numel() <= max(budget, 3 * original[1]) for _, strip in found)
    torch.testing.assert_close(joined, resized(masks, geometry), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("merge", ["sum", "max"])
def test_semantic_equals_scores_at_once(merge):
    from dataseg.inference.postprocess import SemanticOptions

    logits, masks = proposals()
    result = semantic(logits, masks, CANVAS, SemanticOptions(merge), strip_elements=9 * 103 * 5)
    each = logits.softmax(-1)[:, :-1, None, None] * resized(masks, CANVAS).sigmoid()[:, None]
    expected = (each.sum(0) if merge == "sum" else each.amax(0)).argmax(0)
    assert result.ids.shape == (71, 103)
    assert result.ids.dtype == torch.int32
    assert torch.equal(result.class_map(), expected)
    assert result.labels.tolist() == sorted(set(expected.flatten().tolist()))
    assert len(result.labels) > 1


@pytest.mark.parametrize("merge", ["sum", "max"])
def test_scores_resized_after_merging_equal_the_official_order(merge):
    """Semantic-only configurations: upsample to the padded input, merge, crop the padding, resize the scores."""
    from dataseg.inference.postprocess import SemanticOptions

    logits, masks = proposals()
    result = semantic(logits, masks, CANVAS, SemanticOptions(merge, resize="scores"), strip_elements=9 * 103 * 5)
    probs = F.interpolate(masks[None], CANVAS.padded, mode="bilinear")[0].sigmoid()
    each = logits.softmax(-1)[:, :-1, None, None] * probs[:, None]
    scores = (each.sum(0) if merge == "sum" else each.amax(0))[:, : CANVAS.size[0], : CANVAS.size[1]]
    expected = F.interpolate(scores[None], CANVAS.output, mode="bilinear")[0].argmax(0)
    assert torch.equal(result.class_map(), expected)
    assert not torch.equal(result.class_map(), semantic(logits, masks, CANVAS, SemanticOptions(merge)).class_map())


def test_background_is_never_predicted():
    logits, masks = proposals()
    logits[:, -1] = 50.0
    result = semantic(logits, masks, CANVAS)
    assert (result.ids != VOID).all()
    assert result.labels.max() < 4
    nothing = panoptic(logits, masks, CANVAS, IS_THING)
    assert len(nothing) == 0
    assert (nothing.ids == VOID).all()
    assert nothing.ids.shape == (71, 103)
    assert nothing.scores.shape == (0,)
    assert instance(logits, masks, CANVAS, IS_THING).labels.max() < 4


def official_panoptic(logits, masks, is_thing, options):
    """Mask2Former's procedure, segment by segment, written from its description: id map and (label, scores)."""
    scores, labels = logits.softmax(-1).max(-1)
    keep = labels.ne(logits.shape[1] - 1) & (scores > options.score_threshold)
    scores, labels, probs = scores[keep], labels[keep], masks[keep].sigmoid()
    ids, segments, stuff = torch.full(masks.shape[1:], VOID), [], {}
    if len(labels) == 0:
        return ids, segments
    winner = (scores[:, None, None] * probs).argmax(0)
    for k, label in enumerate(labels.tolist()):
        own, mask = probs[k] >= options.mask_threshold, (winner == k) & (probs[k] >= options.mask_threshold)
        if not mask.any() or (winner == k).sum() / own.sum() < options.overlap_threshold:
            continue
        if label in stuff:
            ids[mask] = stuff[label]
            segments[stuff[label]][1].append(scores[k].item())
            continue
        if not is_thing[label]:
            stuff[label] = len(segments)
        ids[mask] = len(segments)
        segments.append((label, [scores[k].item()]))
    return ids, segments


@pytest.mark.parametrize("seed", range(8))
def test_panoptic_equals_mask2former(seed):
    logits, masks = proposals(queries=14, seed=seed)
    masks = masks - 5  # smaller masks: some win most of their own area, some do not
    options = PanopticOptions(score_threshold=0.5, overlap_threshold=0.5)
    result = panoptic(logits, masks, CANVAS, IS_THING, options, strip_elements=14 * 103 * 3)
    ids, segments = official_panoptic(logits, resized(masks, CANVAS), IS_THING, options)
    assert result.ids.dtype == torch.int32
    assert torch.equal(result.ids.long(), ids)
    assert result.labels.tolist() == [label for label, _ in segments]
    assert result.scores.tolist() == pytest.approx([max(scores) for _, scores in segments])
    assert len(segments) > 1
    assert (ids == VOID).any()


def test_panoptic_equals_transformers():
    """Where its conventions agree with Mask2Former's: saturated masks and scores, one fused class.

    transformers gives a pixel to its winner even where the winner's own mask leaves it out: a few, where blocks meet.
    """
    blocks = torch.tensor([[0, 0, 1], [2, 3, 1], [2, 3, 1]])  # queries 0 and 3 are the same stuff class
    masks = torch.stack([blocks == k for k in range(4)]).float()
    masks = 60 * F.interpolate(masks[None], size=(96, 96))[0] - 30
    masks[2, :, :16] = 30.0  # query 2 claims more than it wins, but too little to be dropped
    logits = torch.full((5, 5), -10.0)
    for query, label in enumerate((1, 0, 2, 1, 4)):
        logits[query, label] = 10.0
    masks = torch.cat([masks, masks[:1]])  # the background query wins nothing
    logits[2, 2] = 8.0
    options = PanopticOptions(overlap_threshold=0.5)
    ours = panoptic(logits, masks, ImageGeometry((384, 384), (384, 384), (384, 384)), IS_THING, options)
    theirs = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None]),
        threshold=0.8,
        overlap_mask_area_threshold=0.5,
        label_ids_to_fuse={1, 3},
        target_sizes=[(384, 384)],
    )[0]
    info = {s["id"]: s["label_id"] for s in theirs["segments_info"]}
    assert len(ours) == len(info) == 3
    sure = ours.ids != VOID
    assert sure.float().mean() > 0.999
    for k, label in enumerate(ours.labels.tolist()):
        mask = (ours.ids == k)[sure]
        assert [i for i in info if torch.equal((theirs["segmentation"] == i)[sure], mask) and info[i] == label]


def test_stuff_is_merged_and_things_are_not():
    masks = torch.full((4, 4, 4), -20.0)
    for k in range(4):
        masks[k, :, k] = 20.0
    logits = torch.full((4, 5), -20.0)
    for query, label in enumerate((1, 0, 1, 0)):
        logits[query, label] = 20.0
    result = panoptic(logits, masks, ImageGeometry((16, 16), (16, 16), (4, 4)), IS_THING)
    assert result.ids[0].tolist() == [0, 1, 0, 2]
    assert result.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("candidates", ["all", "things"])
def test_instance_equals_mask2former(candidates):
    """Mask2Former lets all classes compete for the places and drops stuff afterwards."""
    logits, masks = proposals(queries=11, sharpness=1.0)
    options = InstanceOptions(15, candidates)
    result = instance(logits, masks, CANVAS, IS_THING, options, strip_elements=11 * 103 * 2)
    full = resized(masks, CANVAS)
    classes = [0, 1, 2, 3] if candidates == "all" else [0, 2]
    expected = []
    for score, index in zip(*logits.softmax(-1)[:, classes].flatten().topk(15), strict=True):
        query, label = int(index) // len(classes), classes[int(index) % len(classes)]
        mask = full[query] > 0
        if not IS_THING[label]:
            continue
        expected.append((float(score * full[query].sigmoid()[mask].mean()), label, mask.numpy()))
    expected.sort(key=lambda e: -e[0])
    assert isinstance(result, InstanceMasks)
    assert len(result) == len(expected) == (10 if candidates == "all" else 15)
    assert result.size == (71, 103)
    assert result.scores.shape == result.labels.shape == (len(expected),)
    for rle, label, score, (their_score, their_label, mask) in zip(
        result.rles, result.labels.tolist(), result.scores.tolist(), expected, strict=True
    ):
        assert score == pytest.approx(their_score, abs=1e-5)
        assert label == their_label
        assert np.array_equal(coco_mask.decode(rle), mask)


def test_instances_without_pixels_or_things():
    logits, masks = proposals(queries=3)
    assert len(instance(logits, torch.full_like(masks, -9.0), CANVAS, IS_THING)) == 0
    assert len(instance(logits, masks, CANVAS, torch.zeros(4, dtype=torch.bool))) == 0
    assert len(instance(logits, masks, CANVAS, torch.ones(4, dtype=torch.bool), InstanceOptions(5))) <= 5


@pytest.mark.parametrize(
    ("task", "kind"), [(Task.SEMANTIC, SegmentMap), (Task.PANOPTIC, SegmentMap), (Task.INSTANCE, InstanceMasks)]
)
def test_batches_at_original_size_under_autocast(task, kind):
    both = [proposals(seed=s) for s in range(2)]
    batch = Batch(
        dataset="toy",
        task=task,
        images=torch.zeros(2, 3, 64, 96, dtype=torch.uint8),
        sizes=[(64, 96), (50, 77)],
        targets=[SegmentMap(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))] * 2,
        image_ids=["a", "b"],
        original_sizes=[(30, 40), (71, 103)],
        seeds=[0, 0],
        is_padding=[False, False],
    )
    packed = Proposals(*(torch.stack(parts).bfloat16().requires_grad_() for parts in zip(*both, strict=True)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = PostProcessor()(packed, batch, IS_THING, task)
    assert [type(r) for r in results] == [kind, kind]
    assert [r.size for r in results] == batch.original_sizes
    last = (packed.class_logits[1].detach().float(), packed.mask_logits[1].detach().float(), CANVAS)
    if task is Task.SEMANTIC:
        assert torch.equal(results[1].class_map(), semantic(*last).class_map())
    elif task is Task.PANOPTIC:
        assert torch.equal(results[1].ids, panoptic(*last, IS_THING).ids)
    else:
        assert torch.equal(results[1].scores, instance(*last, IS_THING).scores)


LARGE = """
import resource, sys, torch
from dataseg.inference.postprocess import PanopticOptions, instance, panoptic, semantic
from dataseg.structures.geometry import ImageGeometry
torch.set_num_threads(1)
queries, classes = 100, 459
logits, masks = torch.randn(queries, classes + 1) * 3, torch.randn(queries, 200, 256)
is_thing = torch.arange(classes) % 2 == 0
geometry = ImageGeometry((800, 1024), (800, 1000), tuple(map(int, sys.argv[2:4])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
task = {"semantic": lambda: semantic(logits, masks, geometry),
        "panoptic": lambda: panoptic(logits, masks, geometry, is_thing, PanopticOptions(score_threshold=0.0)),
        "instance": lambda: instance(logits, masks, geometry, is_thing)}[sys.argv[1]]
print(task().size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_memory_is_bounded_for_twenty_megapixels_and_459_classes(task):
    """At once, 100 masks of 4000 x 5000 take 8 GB and 459 score maps 37 GB."""
    run = [sys.executable, "-c", LARGE, task, "4000", "5000"]
    output = subprocess.run(run, capture_output=True, text=True, check=True, timeout=1200).stdout
    assert output.startswith("(4000, 5000)")
    assert float(output.split()[-1]) < 1200, "MiB above the network's own output"


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000))
def test_the_first_of_the_largest_wins(count, seed):
    values = torch.randint(-2, 3, (count, 5, 7), generator=torch.Generator().manual_seed(seed)).float()
    found = _row_of_largest(values)
    assert found.dtype == torch.int32
    assert np.array_equal(found.numpy(), values.numpy().argmax(0))
