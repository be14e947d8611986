"""The training loss: matching, class, mask, dice and projection terms over all decoder layers.

Shape legend: ``L`` = decoder layers that predict, ``B`` = batch, ``Q`` = queries, ``C`` = classes, ``K`` = target
segments of an image, ``M = min(Q, K)`` = its matched pairs, ``T`` = sum of M over the batch, ``P`` = points,
``N`` = random points that the P are chosen from, ``h, w`` = rows and columns of the mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataseg.losses.affinity import affinity_loss, color_similarity
from dataseg.losses.matcher import BoxTargets, HungarianMatcher, Matches, PointTargets
from dataseg.losses.points import (
    check_geometry,
    sample_logits,
    sample_target,
    select_uncertain,
    target_labels,
    uniform_points,
)
from dataseg.losses.terms import MaskLoss, box_profiles, dice_loss, mask_loss, mask_profiles, projection_loss
from dataseg.structures import Batch, Boxes, InstanceMasks, Proposals, SegmentMap, Target, UserError
from dataseg.structures.geometry import ImageGeometry

MATCHING_STREAM, LOSS_STREAM = 0, 1
"""Numbers of the streams of random points that one sample's seed gives."""


@dataclass(frozen=True)
class _Image:
    """One image of a batch, as its losses need it.

    Attributes:
        pixels: uint8 ``[3, H, W]``, padded.
        target: after MERGE.
        geometry: where the image lies in the padded input.
        region: where losses are taken: the image, or all of the padded input.
        labels: int64 ``[K]``.
        boxes: of a target of boxes, else None.
        seed: of its points.
        image_id: for messages.
    """

    pixels: Tensor
    target: Target
    geometry: ImageGeometry
    region: ImageGeometry
    labels: Tensor
    boxes: BoxTargets | None
    seed: int
    image_id: str

    def place(self, points_P2: Tensor) -> tuple[Tensor, Tensor]:
        """Points in [0, 1] of the region, as those of the image (beyond 1 in the padding) and of the padded input."""
        if self.region is self.geometry:
            return points_P2, self.geometry.to_padded(points_P2)
        return self.geometry.to_image(points_P2), points_P2

    @property
    def masks(self) -> SegmentMap | InstanceMasks:
        """The target, if it is not of boxes."""
        assert not isinstance(self.target, Boxes)
        return self.target


class Criterion(nn.Module):
    """Loss of a batch of one dataset (method: Supervision). Sample by sample, masks and boxes may be mixed.

    Points are random, but a pure function of the sample's seed: neither the other samples nor the rank matter.
    As in Mask2Former every layer is matched by itself. Departures, equal in expectation: matching points are shared
    by the layers of an image, and the points that the uncertain ones are chosen from by all masks of an image and
    layer, so that targets are read once.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        no_object_weight: float = 0.1,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        projection_weight: float = 5.0,
        affinity_weight: float = 0.0,
        affinity_threshold: float = 0.3,
        mask_loss: MaskLoss = "bce",
        box_supervision: Literal["projection", "off"] = "projection",
        padding: Literal["background", "void"] = "background",
    ) -> None:
        """Weights are those of the terms, in matching costs as in losses.

        Args:
            num_points: points per mask (P).
            oversample_ratio: random points drawn for each that is chosen by uncertainty.
            importance_ratio: share of points chosen by uncertainty; the others are uniform.
            no_object_weight: weight of the background class in the class cross-entropy.
            class_weight: of the class cross-entropy.
            mask_weight: of the point-wise mask loss.
            dice_weight: of the dice loss.
            projection_weight: of the projection loss, a sum of two dice losses; default: each weighs as dice does.
            affinity_weight: of the colour-affinity term of boxes; 0 = off, not computed.
            affinity_threshold: colour similarity from which neighbours should be on one side (BoxInst: 0.3).
            mask_loss: point-wise mask loss of mask-supervised samples.
            box_supervision: "off": boxes are matched and classified, but give no mask loss.
            padding: "background": the padding belongs to no segment, and masks of all kinds of targets are compared
                there too, as in the official Mask2Former, so that its published scores hold. "void": it takes part in
                no loss, all points lie in the image.
        """
        super().__init__()
        if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise UserError(
                "need num_points >= 1, oversample_ratio >= 1 and importance_ratio in [0, 1], got"
                f" {num_points}, {oversample_ratio} and {importance_ratio}"
            )
        self.num_points = num_points
        self.num_uncertain = int(importance_ratio * num_points)
        self.num_candidates = max(self.num_uncertain, int(oversample_ratio * num_points))
        self.no_object_weight = no_object_weight
        self.weights = {"class": class_weight, "mask": mask_weight, "dice": dice_weight}
        self.weights["projection"] = projection_weight if box_supervision == "projection" else 0.0
        if affinity_weight and box_supervision == "projection":
            self.weights["affinity"] = affinity_weight
        self.affinity_threshold = affinity_threshold
        self.mask_loss: MaskLoss = mask_loss
        self.padding: Literal["background", "void"] = padding
        self.matcher = HungarianMatcher(class_weight, mask_weight, dice_weight, projection_weight, mask_loss)

    def forward(
        self,
        proposals: Sequence[Proposals],
        batch: Batch,
        mean_over_ranks: Callable[[Tensor], Tensor] = lambda values: values,
        representatives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses, summed over layers.

        Args:
            proposals: one per layer, of the whole batch.
            batch: targets are those after MERGE, on the proposals' device.
            mean_over_ranks: averages what the sums are divided by, float32 ``[2]``: the number of target segments,
                for mask terms, of which at least 1 counts as in the official Mask2Former; and the sum of the class
                weights of all queries, for the class term. The official class term is divided by the rank's own sum,
                so that the queries of ranks with few segments weigh more. It is called before matching, so that ranks
                need not wait.
            representatives: int64 ``[L, B, Q]``, the query that stands for each, where proposals were merged (then its
                mask is the group's); None = each for itself. The others are matched only where segments outnumber
                representatives. Unless they are, they learn the representative's class, with the weight of unmatched
                queries: a group counts as one match, and the class weights' sum holds.

        Returns:
            Float32 scalars "class", "mask", "dice", "projection" (and "affinity" if it is on), the same keys in the
            same order for every batch, each connected to every layer: a term that does not apply is 0.

        Raises:
            NonFiniteCostError: the proposals are not finite; names the images.
            UserError: a target is of another size than its image.
        """
        with torch.autocast(device_type=proposals[0].class_logits.device.type, enabled=False):
            images = _images(batch, proposals[0].mask_logits.shape[-2:], self.padding)
            normalizers = mean_over_ranks(self._normalizers(images, proposals[0].class_logits.shape[1]))
            segments, class_weights = normalizers[0].clamp(min=1), normalizers[1]
            matches = self._match(proposals, images, representatives)
            sums = self._mask_sums(proposals, images, matches)
            losses = {"class": self._class_sum(proposals, images, matches, representatives) / class_weights}
            for name in self.weights:
                if name != "class":
                    losses[name] = sums[name] / segments
            return {name: self.weights[name] * losses[name] for name in self.weights}

    def _normalizers(self, images: Sequence[_Image], num_queries: int) -> Tensor:
        matched = sum(min(num_queries, len(image.labels)) for image in images)
        background = num_queries * len(images) - matched
        values = [float(sum(len(image.labels) for image in images)), matched + self.no_object_weight * background]
        return torch.tensor(values, device=images[0].labels.device)

    def _match(
        self, proposals: Sequence[Proposals], images: Sequence[_Image], representatives: Tensor | None
    ) -> Matches:
        device = proposals[0].mask_logits.device
        prepared: list[PointTargets | BoxTargets | None] = []
        for image in images:
            if not len(image.labels):
                prepared.append(None)
            elif image.boxes is not None:
                prepared.append(image.boxes)
            else:
                drawn_P2 = uniform_points(image.seed, MATCHING_STREAM, (self.num_points,), device)
                points_P2, padded_P2 = image.place(drawn_P2)
                values_KP, valid_P = sample_target(image.masks, image.geometry, points_P2)
                prepared.append(PointTargets(padded_P2, values_KP, valid_P))
        labels, ids = [image.labels for image in images], [image.image_id for image in images]
        return self.matcher(proposals, labels, prepared, ids, representatives)

    def _class_sum(
        self,
        proposals: Sequence[Proposals],
        images: Sequence[_Image],
        matches: Matches,
        representatives: Tensor | None,
    ) -> Tensor:
        logits_LBQC = torch.stack([p.class_logits for p in proposals]).float()
        background = logits_LBQC.shape[-1] - 1
        weights_C = logits_LBQC.new_ones(background + 1)
        weights_C[background] = self.no_object_weight
        classes_LBQ = torch.full(logits_LBQC.shape[:3], background, device=logits_LBQC.device)
        start = 0
        for i, (image, count) in enumerate(zip(images, matches.counts, strict=True)):
            pairs = slice(start, start + count)
            matched_LM = image.labels[matches.segments[:, pairs]]
            classes_LBQ[:, i].scatter_(1, matches.queries[:, pairs], matched_LM)
            start += count
        if representatives is not None:
            matched_LBQ = classes_LBQ != background
            classes_LBQ = torch.where(matched_LBQ, classes_LBQ, classes_LBQ.gather(2, representatives))
            losses = functional.cross_entropy(logits_LBQC.flatten(0, 2), classes_LBQ.flatten(), reduction="none")
            return torch.where(matched_LBQ.flatten(), losses, self.no_object_weight * losses).sum()
        return functional.cross_entropy(logits_LBQC.flatten(0, 2), classes_LBQ.flatten(), weights_C, reduction="sum")

    def _mask_sums(
        self, proposals: Sequence[Proposals], images: Sequence[_Image], matches: Matches
    ) -> dict[str, Tensor]:
        """Sums of the mask terms over layers and matched pairs; unweighted."""
        counts = torch.tensor(matches.counts)
        image_T = torch.repeat_interleave(torch.arange(len(counts)), counts).to(matches.queries.device)
        # one gather per layer for the whole batch: its backward writes each layer's gradient once, matched or not
        logits_LThw = torch.stack(
            [p.mask_logits[image_T, q_T].float() for p, q_T in zip(proposals, matches.queries, strict=True)]
        )
        sums = dict.fromkeys(self.weights, _connected_zero(proposals, logits_LThw))
        pieces = torch.split(logits_LThw, matches.counts, 1), torch.split(matches.segments, matches.counts, 1)
        for image, logits_LMhw, segments_LM in zip(images, *pieces, strict=True):
            if not segments_LM.shape[1]:
                continue
            if image.boxes is not None:
                terms = self._box_terms(logits_LMhw, segments_LM, image, image.boxes)
            else:
                terms = self._point_terms(logits_LMhw, segments_LM, image)
            for name, value in terms.items():
                sums[name] = sums[name] + value
        return sums

    def _point_terms(self, logits_LMhw: Tensor, segments_LM: Tensor, image: _Image) -> dict[str, Tensor]:
        """Mask and dice terms of one image."""
        layers, masks = segments_LM.shape
        uniform = self.num_points - self.num_uncertain
        points_LN2 = uniform_points(
            image.seed, LOSS_STREAM, (layers, self.num_candidates + uniform), segments_LM.device
        )
        points_LN2, padded_LN2 = image.place(points_LN2)
        values_KN, valid_N = sample_target(image.masks, image.geometry, points_LN2.flatten(0, 1))
        values_KLN, valid_LN = values_KN.view(-1, *points_LN2.shape[:2]), valid_N.view(points_LN2.shape[:2])
        with torch.no_grad():
            scores_LMN = sample_logits(logits_LMhw, padded_LN2[:, : self.num_candidates])
            chosen_LMP = select_uncertain(scores_LMN, valid_LN[:, : self.num_candidates], self.num_uncertain)
            others_P = torch.arange(self.num_candidates, self.num_candidates + uniform, device=segments_LM.device)
            chosen_LMP = torch.cat([chosen_LMP, others_P.expand(layers, masks, -1)], -1)
            layer_L11 = torch.arange(layers, device=segments_LM.device)[:, None, None]
            values_LMP = values_KLN[segments_LM[..., None], layer_L11, chosen_LMP]
            valid_LMP = valid_LN[layer_L11, chosen_LMP]
            points_LMP2 = padded_LN2[layer_L11, chosen_LMP]
        sampled = sample_logits(logits_LMhw.flatten(0, 1)[:, None], points_LMP2.flatten(0, 1))
        logits_LMP = sampled.view(layers, masks, -1)
        return {
            "mask": mask_loss(logits_LMP, values_LMP, valid_LMP, self.mask_loss).sum(),
            "dice": dice_loss(logits_LMP, values_LMP, valid_LMP).sum(),
        }

    def _box_terms(
        self, logits_LMhw: Tensor, segments_LM: Tensor, image: _Image, boxes: BoxTargets
    ) -> dict[str, Tensor]:
        """Projection (and affinity) term of one image."""
        wanted = boxes.profiles[0][segments_LM], boxes.profiles[1][segments_LM]
        terms = {"projection": projection_loss(mask_profiles(logits_LMhw, boxes.cells), wanted).sum()}
        if "affinity" in self.weights:
            grid = logits_LMhw.shape[-2], logits_LMhw.shape[-1]
            rows, columns = image.geometry.cells(*grid)
            similarity_Ehw = color_similarity(image.pixels, (rows, columns), grid)
            inside_LMhw = wanted[0][..., None, :columns] * wanted[1][..., :rows, None]
            image_logits = logits_LMhw[..., :rows, :columns]
            losses_LM = affinity_loss(image_logits, similarity_Ehw, inside_LMhw, self.affinity_threshold)
            terms["affinity"] = losses_LM.sum()
        return terms


def _connected_zero(proposals: Sequence[Proposals], matched_LThw: Tensor) -> Tensor:
    """0, connected to every layer's proposals, so that all ranks have gradients for the same parameters.

    One logit of each layer is enough for its classes. Masks are connected by their own terms, or by the sum over
    none of them where nothing is matched.
    """
    masks = matched_LThw.new_zeros(()) if matched_LThw.shape[1] else matched_LThw.sum()
    return 0.0 * sum((p.class_logits[0, 0, 0].float() for p in proposals), start=masks)


def _images(batch: Batch, grid: Sequence[int], padding: Literal["background", "void"]) -> list[_Image]:
    """The images of a batch; checks that targets agree with their sizes.

    Args:
        batch: after MERGE.
        grid: rows and columns of the mask logits.
        padding: see `Criterion`.
    """
    padded = batch.images.shape[2], batch.images.shape[3]
    found = []
    for i, target in enumerate(batch.targets):
        geometry = ImageGeometry(padded, batch.sizes[i])
        check_geometry(target, geometry, batch.image_ids[i])
        region = geometry if padding == "void" else ImageGeometry(padded, padded)
        boxes = _box_targets(target, region, grid) if isinstance(target, Boxes) else None
        own = target_labels(target), boxes, batch.seeds[i], batch.image_ids[i]
        found.append(_Image(batch.images[i], target, geometry, region, *own))
    return found


def _box_targets(target: Boxes, geometry: ImageGeometry, grid: Sequence[int]) -> BoxTargets:
    cells = geometry.cells(grid[0], grid[1])
    steps = geometry.padded[0] / grid[0], geometry.padded[1] / grid[1]
    return BoxTargets(box_profiles(target.xyxy, cells, steps), cells)
