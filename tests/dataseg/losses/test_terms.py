import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss
from transformers.models.mask2former import modeling_mask2former as theirs

from dataseg.losses import affinity, terms


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    logits_QP = 4 * torch.randn(6, 40, generator=generator)
    values_KP = torch.rand(3, 40, generator=generator).round(decimals=1)
    return logits_QP, values_KP


def test_pair_costs_equal_transformers(points):
    logits, values = points
    valid = torch.ones(40, dtype=torch.bool)
    mask_cost = terms.pair_mask_cost(logits, values, valid)
    dice_cost = terms.pair_dice_cost(logits, values, valid)
    assert mask_cost.shape == dice_cost.shape == (6, 3)
    torch.testing.assert_close(mask_cost, theirs.pair_wise_sigmoid_cross_entropy_loss(logits, values))
    torch.testing.assert_close(dice_cost, theirs.pair_wise_dice_loss(logits, values))


def test_matched_losses_equal_transformers(points):
    logits, values = points[0][:3], points[1]
    valid = torch.ones(3, 40, dtype=torch.bool)
    mask, dice = terms.mask_loss(logits, values, valid), terms.dice_loss(logits, values, valid)
    assert mask.shape == dice.shape == (3,)
    torch.testing.assert_close(mask.sum(), theirs.sigmoid_cross_entropy_loss(logits, values, 1))
    torch.testing.assert_close(dice.sum(), theirs.dice_loss(logits, values, 1))


def test_focal_equals_torchvision(points):
    logits, values = points[0][:3], (points[1] > 0.5).float()
    valid = torch.ones(3, 40, dtype=torch.bool)
    expected = sigmoid_focal_loss(logits, values, reduction="none").mean(1)
    torch.testing.assert_close(terms.mask_loss(logits, values, valid, "focal"), expected)


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_pair_costs_are_the_matched_losses_of_each_pair_and_void_is_left_out(points, kind):
    logits, values = points
    valid = torch.arange(40) % 3 != 0
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(3), indexing="ij")
    mask = terms.mask_loss(logits[rows], values[columns], valid.expand(6, 3, -1), kind)
    dice = terms.dice_loss(logits[rows], values[columns], valid.expand(6, 3, -1))
    torch.testing.assert_close(terms.pair_mask_cost(logits, values, valid, kind), mask)
    torch.testing.assert_close(terms.pair_dice_cost(logits, values, valid), dice)
    kept = terms.pair_mask_cost(
        logits[:, valid], values[:, valid], torch.ones(int(valid.sum()), dtype=torch.bool), kind
    )
    torch.testing.assert_close(mask, kept)
    images = torch.stack([valid, ~valid])
    several = terms.pair_mask_cost(logits.expand(2, -1, -1), values.expand(2, -1, -1), images, kind)
    assert several.shape == (2, 6, 3)
    torch.testing.assert_close(several[0], mask)


def test_all_void_gives_zero_and_finite_gradients():
    logits = torch.randn(2, 5, requires_grad=True)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    loss = terms.mask_loss(logits, torch.zeros(2, 5), nothing) + terms.dice_loss(logits, torch.zeros(2, 5), nothing)
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert torch.equal(logits.grad, torch.zeros(2, 5))


def test_class_cost(points):
    logits = torch.randn(2, 5, 4)
    cost = terms.class_cost(logits, torch.tensor([2, 0, 2]).expand(2, -1))
    assert cost.shape == (2, 5, 3)
    torch.testing.assert_close(cost[1, 3, 1], -logits[1, 3].softmax(0)[0])
    of_each_image = terms.class_cost(logits, torch.tensor([[2, 0, 2], [1, 1, 0]]))
    torch.testing.assert_close(of_each_image[0], cost[0])
    torch.testing.assert_close(of_each_image[1, 3, 0], -logits[1, 3].softmax(0)[1])


def test_projection_by_hand():
    """A 2 x 3 image in a 3 x 4 grid of 4-pixel cells; the box spans the first two columns of the first row."""
    probs = torch.tensor([[0.9, 0.2, 0.1, 0.99], [0.3, 0.5, 0.4, 0.99], [0.99, 0.99, 0.99, 0.99]])
    mask = terms.mask_profiles(torch.logit(probs)[None, :2, :3])
    torch.testing.assert_close(mask[0], torch.tensor([[0.9, 0.5, 0.4]]))
    torch.testing.assert_close(mask[1], torch.tensor([[0.9, 0.5]]))
    box = terms.box_profiles(torch.tensor([[0.0, 0.0, 8.0, 4.0]]), (2, 3), (4.0, 4.0), (1, 2))
    assert box[0].tolist() == [[1, 1, 0]]
    assert box[1].tolist() == [[1, 0]]
    onto_x = 1 - 2 * (0.9 + 0.5) / (0.81 + 0.25 + 0.16 + 2)
    onto_y = 1 - 2 * 0.9 / (0.81 + 0.25 + 1)
    loss = terms.projection_loss(mask, box)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(onto_x + onto_y, abs=1e-6)
    assert terms.pair_projection_cost(mask, box).item() == pytest.approx(onto_x + onto_y, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.floats(0, 40, width=32)] * 4), min_size=1, max_size=4))
def test_box_profiles_equal_brute_force(corners):
    xyxy = torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners])
    onto_x, onto_y = terms.box_profiles(xyxy, (9, 7), (4.0, 5.0), (8, 6))
    assert onto_x.shape == (len(corners), 7)
    assert onto_y.shape == (len(corners), 9)
    assert (onto_x.sum(1) >= 1).all()
    assert (onto_y.sum(1) >= 1).all()
    for k, (x1, y1, x2, y2) in enumerate(xyxy.tolist()):
        for profile, low, high, step in ((onto_x[k], x1, x2, 5.0), (onto_y[k], y1, y2, 4.0)):
            middle = min(int((low + high) / 2 / step), len(profile) - 1)
            expected = [float(low <= (c + 0.5) * step < high or c == middle) for c in range(len(profile))]
            assert profile.tolist() == expected


def test_pair_projection_is_the_matched_loss_of_each_pair():
    logits = torch.randn(2, 5, 8, 6)
    mask = terms.mask_profiles(logits[..., :7, :])
    assert mask[0].shape == (2, 5, 6)
    assert mask[1].shape == (2, 5, 7)
    box = terms.box_profiles(torch.tensor([[1.0, 2, 20, 9], [3, 3, 3.5, 3.5]]), (7, 6), (4.0, 4.0), (6, 5))
    cost = terms.pair_projection_cost(mask, box)
    assert cost.shape == (2, 5, 2)
    assert (cost >= 0).all()
    assert (cost <= 2).all()
    for k in range(2):
        same_box = tuple(b[k].expand_as(m) for m, b in zip(mask, box, strict=True))
        torch.testing.assert_close(cost[..., k], terms.projection_loss(mask, same_box))


def test_perfect_box_has_no_projection_loss():
    box = terms.box_profiles(torch.tensor([[4.0, 8.0, 16.0, 20.0]]), (8, 8), (4.0, 4.0), (7, 7))
    logits = torch.where(box[0][:, None, :] * box[1][:, :, None] > 0, 30.0, -30.0)
    assert terms.projection_loss(terms.mask_profiles(logits), box).item() < 1e-5


def test_lab_equals_opencv():
    rgb = np.random.default_rng(0).random((9, 7, 3), dtype=np.float32)
    expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    lab = affinity.rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1))
    assert lab.shape == (3, 9, 7)
    # OpenCV interpolates its curves in tables
    torch.testing.assert_close(lab.permute(1, 2, 0), torch.from_numpy(expected), atol=0.5, rtol=0)


def test_affinity_equals_a_loop_over_edges():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 24, 24), generator=generator, dtype=torch.uint8)
    cells, d = (5, 6), affinity.DILATION
    similarity = affinity.color_similarity(image, cells, (6, 6))
    assert similarity.shape == (8, 5, 6)
    logits = torch.randn(1, 5, 6, generator=generator)
    inside = torch.zeros(1, 5, 6)
    inside[:, 1:4, 2:6] = 1
    threshold = similarity[similarity > 0].median().item()

    colors = torch.nn.functional.avg_pool2d(image.float() / 255, 4)[:, :5].permute(1, 2, 0).contiguous().numpy()
    lab = torch.from_numpy(cv2.cvtColor(colors, cv2.COLOR_RGB2LAB)).double()
    probs, total, edges = logits[0].double().sigmoid(), 0.0, 0
    for y, x in inside[0].nonzero().tolist():
        for dy in (-d, 0, d):
            for dx in (-d, 0, d):
                v, u = y + dy, x + dx
                if (dy, dx) == (0, 0) or not (0 <= v < 5 and 0 <= u < 6):
                    continue
                if torch.exp(-(lab[y, x] - lab[v, u]).norm() / 2) >= threshold:
                    same = probs[y, x] * probs[v, u] + (1 - probs[y, x]) * (1 - probs[v, u])
                    total, edges = total - same.log(), edges + 1
    loss = affinity.affinity_loss(logits, similarity, inside, threshold)
    assert loss.shape == (1,)
    assert edges > 0
    assert loss.item() == pytest.approx(float(total / edges), rel=1e-2)
    assert affinity.affinity_loss(logits, similarity, inside * 0, threshold).item() == 0
