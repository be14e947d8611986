"""The criterion on proposals of which some stand for others."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from dataseg.losses import Criterion
from dataseg.losses.matcher import HungarianMatcher, PointTargets, Targets
from dataseg.losses.points import MaskTargets
from dataseg.merge_predictions import merge_before_loss
from dataseg.structures import Proposals, SegmentMap, Task

SIZE = (64, 48)
STUFF = torch.zeros(5, dtype=torch.bool)


def grouped(proposals, targets, mode="sum"):
    return merge_before_loss(proposals, targets, STUFF, Task.SEMANTIC, mode)


def having(batch, targets):
    return replace(batch, targets=targets)


def total(losses):
    return sum(losses.values())


def some_maps(toys):
    return [toys.map(SIZE, 3, 5, seed=1), toys.map(SIZE, 0, 5), toys.map(SIZE, 5, 5, seed=2)]


def test_one_query_per_class_is_the_ordinary_loss(toys):
    """Five queries, each for a class of its own, and three for the background."""
    batch, targets = toys.batch([SIZE] * 3), some_maps(toys)
    proposals = toys.proposals(batch, 8, 5, layers=2)
    with torch.no_grad():
        for p in proposals:
            p.class_logits[:, range(8), [0, 1, 2, 3, 4, 5, 5, 5]] += 20
    criterion = Criterion(num_points=64)
    expected = criterion(proposals, having(batch, targets))
    merged, representatives = grouped(proposals, targets)
    found = criterion(merged, having(batch, targets), representatives=representatives)
    torch.testing.assert_close(found, expected)
    leaves = [tensor for p in proposals for tensor in (p.class_logits, p.mask_logits)]
    gradients = [torch.autograd.grad(total(losses), leaves) for losses in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_permuted_queries(toys, mode):
    batch, targets = toys.batch([SIZE] * 3), some_maps(toys)
    proposals, order = toys.proposals(batch, 9, 5, layers=2), torch.randperm(9)
    permuted = [Proposals(p.class_logits[:, order], p.mask_logits[:, order]) for p in proposals]
    criterion, losses = Criterion(num_points=64), []
    for these in (proposals, permuted):
        merged, representatives = grouped(these, targets, mode)
        assert (representatives != torch.arange(9)).any()
        losses.append(criterion(merged, having(batch, targets), representatives=representatives))
    torch.testing.assert_close(*losses)


def two_groups():
    """Queries 0 to 2 say class 1, with 1 the surest; 3 and 4 class 2, with 4 the surest; 5 says background."""
    logits = torch.zeros(1, 6, 6)
    logits[0, range(6), [1, 1, 1, 2, 2, 5]] = torch.tensor([3.0, 5, 4, 3, 4, 6])
    return [Proposals(logits.requires_grad_(), torch.randn(1, 6, 16, 12, requires_grad=True))]


def test_a_matched_group_is_taught_as_one(toys):
    """One target, of class 3: the matched representative and its followers learn it, the others the background."""
    batch, proposals = toys.batch([SIZE]), two_groups()
    ids = torch.zeros(SIZE, dtype=torch.int32)
    target = SegmentMap(ids, torch.tensor([3]))
    with torch.no_grad():
        proposals[0].mask_logits[:, :3] += 9  # everywhere, as the target
        proposals[0].mask_logits[:, 3:] -= 9
    merged, representatives = grouped(proposals, [target])
    assert representatives.tolist() == [[[1, 1, 1, 4, 4, 5]]]
    losses = Criterion(num_points=64)(merged, having(batch, [target]), representatives=representatives)
    taught, weights = torch.tensor([3, 3, 3, 5, 5, 5]), torch.tensor([0.1, 1, 0.1, 0.1, 0.1, 0.1])
    nll = functional.cross_entropy(proposals[0].class_logits[0], taught, reduction="none")
    torch.testing.assert_close(losses["class"], 2 * (nll * weights).sum() / weights.sum())
    (losses["mask"] + losses["dice"]).backward()
    reached = proposals[0].mask_logits.grad[0].flatten(1).abs().sum(1) > 0
    assert reached.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(("segments", "followers"), [(2, 0), (3, 0), (4, 1), (6, 3), (9, 3)])
def test_followers_are_matched_only_where_segments_outnumber_representatives(toys, segments, followers):
    (proposals,) = two_groups()
    representatives = torch.tensor([[[1, 1, 1, 4, 4, 5]]])
    target, points = toys.map(SIZE, segments, 5, void=False), torch.rand(1, 50, 2)
    masks = PointTargets(points, *MaskTargets.of([target], [SIZE], SIZE).at(points))
    targets = Targets([0], target.labels[None], [segments], masks)
    with torch.no_grad():
        proposals.mask_logits[:, [1, 4, 5]] = 1e4  # representatives are as bad as can be
        (matches,) = HungarianMatcher(2.0, 5.0, 5.0, 5.0)([proposals], [targets], ["a"], representatives)
    matched = set(matches.queries[0, 0].tolist())
    assert len(matched) == min(6, segments)
    assert len(matched & {0, 2, 3}) == followers


def test_the_graph_is_the_same_without_targets(toys):
    batch = toys.batch([SIZE] * 2)
    for mode in ("sum", "max"):
        for targets in ([toys.map(SIZE, 0, 5)] * 2, [toys.map(SIZE, 4, 5)] * 2):
            proposals = toys.proposals(batch, 7, 5, layers=3)
            merged, representatives = grouped(proposals, targets, mode)
            losses = Criterion(num_points=16)(merged, having(batch, targets), representatives=representatives)
            total(losses).backward()
            grads = [grad for p in proposals for grad in (p.class_logits.grad, p.mask_logits.grad)]
            assert all(grad is not None and grad.isfinite().all() for grad in grads)
