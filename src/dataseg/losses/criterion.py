"""The training loss: matching, class, mask, dice and projection terms over all decoder layers.

Shape legend: ``L`` = decoder layers that predict, ``B`` = batch, ``Q`` = queries, ``C`` = classes, ``K`` = target
segments of an image, ``M = min(Q, K)`` = its matched pairs, ``T`` = sum of M over the batch, ``P`` = points,
``N`` = random points that the P are chosen from, ``h, w`` = rows and columns of the mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Criterion(nn.Module):
    """Loss of a batch of one dataset (method: Supervision). Sample by sample, masks and boxes may be mixed.

    Points are random, but a pure function of the sample's seed: the batch, its padding and the rank do not matter.
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
            box_supervision: "off": boxes are matched and classified, but take no mask loss.
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
        self.box_supervision = box_supervision
        self.matcher = HungarianMatcher(class_weight, mask_weight, dice_weight, projection_weight, mask_loss)

    def normalizers(self, targets: Sequence[Target], proposals: Proposals) -> Tensor:
        """What the sums of this rank's losses are divided by: average it over ranks and pass it to `forward`.

        Known before matching, so that it needs no wait.

        Returns:
            Float32 ``[2]``: number of target segments, and sum of the class weights of all queries.
        """
        return self._normalizers([target_labels(t) for t in targets], proposals.class_logits.shape[1])

    def _normalizers(self, labels: Sequence[Tensor], num_queries: int) -> Tensor:
        matched = sum(min(num_queries, len(labels_K)) for labels_K in labels)
        background = num_queries * len(labels) - matched
        values = [float(sum(map(len, labels))), matched + self.no_object_weight * background]
        return torch.tensor(values, device=labels[0].device)

    def forward(
        self,
        proposals: Sequence[Proposals],
        batch: Batch,
        targets: Sequence[Target],
        normalizers: Tensor | None = None,
        representatives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses, summed over layers.

        Args:
            proposals: one per layer, of the whole batch.
            batch: gives seeds, sizes and image ids (and images, for affinity); its own targets are not looked at.
            targets: after MERGE, length B, on the proposals' device.
            normalizers: `normalizers` averaged over ranks; None = this rank is the only one.
            representatives: int64 ``[L, B, Q]``, the query that stands for each, where proposals were merged (then its
                mask is the group's); None = each for itself. The others are matched only where segments outnumber
                representatives. Unless they are, they are taught the representative's class, with the weight that they
                have unmatched: a group counts as one match, and `normalizers` holds.

        Returns:
            Float32 scalars "class", "mask", "dice", "projection" (and "affinity" if it is on), the same keys in the
            same order for every batch, each connected to every layer: a term that does not apply is 0.

        Raises:
            NonFiniteCostError: the proposals are not finite; names the images.
            UserError: a target is of another size than its image.
        """
        with torch.autocast(device_type=proposals[0].class_logits.device.type, enabled=False):
            labels = [target_labels(t) for t in targets]
            if normalizers is None:
                normalizers = self._normalizers(labels, proposals[0].class_logits.shape[1])
            # below 1 only where no rank has a segment, and then every sum is 0
            segments, class_weights = normalizers[0].clamp(min=1e-6), normalizers[1]
            geometries = _geometries(batch, targets)
            matches = self._match(proposals, batch, targets, labels, geometries, representatives)
            sums = self._mask_sums(proposals, batch, targets, geometries, matches)
            losses = {"class": self._class_sum(proposals, labels, matches, representatives) / class_weights}
            for name in self.weights:
                if name != "class":
                    losses[name] = sums[name] / segments
            return {name: self.weights[name] * loss for name, loss in losses.items()}

    def _match(
        self,
        proposals: Sequence[Proposals],
        batch: Batch,
        targets: Sequence[Target],
        labels: Sequence[Tensor],
        geometries: Sequence[ImageGeometry],
        representatives: Tensor | None,
    ) -> Matches:
        grid = proposals[0].mask_logits.shape[-2:]
        device = proposals[0].mask_logits.device
        prepared: list[PointTargets | BoxTargets | None] = []
        for target, geometry, seed, labels_K in zip(targets, geometries, batch.seeds, labels, strict=True):
            if not len(labels_K):
                prepared.append(None)
            elif isinstance(target, Boxes):
                prepared.append(_box_targets(target, geometry, grid))
            else:
                points_P2 = uniform_points(seed, MATCHING_STREAM, (self.num_points,), device)
                values_KP, valid_P = sample_target(target, geometry, points_P2)
                prepared.append(PointTargets(geometry.to_padded(points_P2), values_KP, valid_P))
        return self.matcher(proposals, labels, prepared, batch.image_ids, representatives)

    def _class_sum(
        self, proposals: Sequence[Proposals], labels: Sequence[Tensor], matches: Matches, representatives: Tensor | None
    ) -> Tensor:
        logits_LBQC = torch.stack([p.class_logits for p in proposals]).float()
        background = logits_LBQC.shape[-1] - 1
        weights_C = logits_LBQC.new_ones(background + 1)
        weights_C[background] = self.no_object_weight
        classes_LBQ = torch.full(logits_LBQC.shape[:3], background, device=logits_LBQC.device)
        start = 0
        for image, (labels_K, count) in enumerate(zip(labels, matches.counts, strict=True)):
            pairs = slice(start, start + count)
            matched_LM = labels_K[matches.segments[:, pairs]]
            classes_LBQ[:, image].scatter_(1, matches.queries[:, pairs], matched_LM)
            start += count
        if representatives is not None:
            matched_LBQ = classes_LBQ != background
            classes_LBQ = torch.where(matched_LBQ, classes_LBQ, classes_LBQ.gather(2, representatives))
            losses = functional.cross_entropy(logits_LBQC.flatten(0, 2), classes_LBQ.flatten(), reduction="none")
            return torch.where(matched_LBQ.flatten(), losses, self.no_object_weight * losses).sum()
        return functional.cross_entropy(logits_LBQC.flatten(0, 2), classes_LBQ.flatten(), weights_C, reduction="sum")

    def _mask_sums(
        self,
        proposals: Sequence[Proposals],
        batch: Batch,
        targets: Sequence[Target],
        geometries: Sequence[ImageGeometry],
        matches: Matches,
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
        for i, (logits_LMhw, segments_LM) in enumerate(zip(*pieces, strict=True)):
            target = targets[i]
            if not segments_LM.shape[1]:
                continue
            if isinstance(target, Boxes):
                image = batch.images[i] if "affinity" in self.weights else None
                terms = self._box_terms(logits_LMhw, segments_LM, target, geometries[i], image)
            else:
                terms = self._point_terms(logits_LMhw, segments_LM, target, geometries[i], batch.seeds[i])
            for name, value in terms.items():
                sums[name] = sums[name] + value
        return sums

    def _point_terms(
        self,
        logits_LMhw: Tensor,
        segments_LM: Tensor,
        target: SegmentMap | InstanceMasks,
        geometry: ImageGeometry,
        seed: int,
    ) -> dict[str, Tensor]:
        """Mask and dice terms of one image."""
        layers, masks = segments_LM.shape
        uniform = self.num_points - self.num_uncertain
        points_LN2 = uniform_points(seed, LOSS_STREAM, (layers, self.num_candidates + uniform), segments_LM.device)
        values_KN, valid_N = sample_target(target, geometry, points_LN2.flatten(0, 1))
        values_KLN, valid_LN = values_KN.view(-1, *points_LN2.shape[:2]), valid_N.view(points_LN2.shape[:2])
        points_LN2 = geometry.to_padded(points_LN2)
        with torch.no_grad():
            scores_LMN = sample_logits(logits_LMhw, points_LN2[:, : self.num_candidates])
            chosen_LMP = select_uncertain(scores_LMN, valid_LN[:, : self.num_candidates], self.num_uncertain)
            others_P = torch.arange(self.num_candidates, self.num_candidates + uniform, device=segments_LM.device)
            chosen_LMP = torch.cat([chosen_LMP, others_P.expand(layers, masks, -1)], -1)
            layer_L11 = torch.arange(layers, device=segments_LM.device)[:, None, None]
            values_LMP = values_KLN[segments_LM[..., None], layer_L11, chosen_LMP]
            valid_LMP = valid_LN[layer_L11, chosen_LMP]
            points_LMP2 = points_LN2[layer_L11, chosen_LMP]
        sampled = sample_logits(logits_LMhw.flatten(0, 1)[:, None], points_LMP2.flatten(0, 1))
        logits_LMP = sampled.view(layers, masks, -1)
        return {
            "mask": mask_loss(logits_LMP, values_LMP, valid_LMP, self.mask_loss).sum(),
            "dice": dice_loss(logits_LMP, values_LMP, valid_LMP).sum(),
        }

    def _box_terms(
        self, logits_LMhw: Tensor, segments_LM: Tensor, target: Boxes, geometry: ImageGeometry, image_3HW: Tensor | None
    ) -> dict[str, Tensor]:
        """Projection (and affinity) term of one image."""
        grid = logits_LMhw.shape[-2:]
        boxes = _box_targets(target, geometry, grid)
        wanted = boxes.profiles[0][segments_LM], boxes.profiles[1][segments_LM]
        terms = {"projection": projection_loss(mask_profiles(logits_LMhw, boxes.cells), wanted).sum()}
        if image_3HW is not None:
            similarity_Ehw = color_similarity(image_3HW, boxes.cells, (grid[0], grid[1]))
            inside_LMhw = wanted[0][..., None, :] * wanted[1][..., None]
            image_logits = logits_LMhw[..., : boxes.cells[0], : boxes.cells[1]]
            losses_LM = affinity_loss(image_logits, similarity_Ehw, inside_LMhw, self.affinity_threshold)
            terms["affinity"] = losses_LM.sum()
        return terms


def _connected_zero(proposals: Sequence[Proposals], matched_LThw: Tensor) -> Tensor:
    """0 that hangs on every layer's proposals, so that all ranks have gradients for the same parameters.

    One logit of each layer is enough for its classes. Masks are connected by their own terms, or by the sum over
    none of them where nothing is matched.
    """
    masks = matched_LThw.new_zeros(()) if matched_LThw.shape[1] else matched_LThw.sum()
    return 0.0 * sum((p.class_logits[0, 0, 0].float() for p in proposals), start=masks)


def _geometries(batch: Batch, targets: Sequence[Target]) -> list[ImageGeometry]:
    """Geometry of each image; checks that targets agree with it."""
    if len(targets) != len(batch):
        raise ValueError(f"{len(targets)} targets for a batch of {len(batch)} images")
    padded = batch.images.shape[2], batch.images.shape[3]
    geometries = [ImageGeometry(padded, size) for size in batch.sizes]
    for target, geometry, image_id in zip(targets, geometries, batch.image_ids, strict=True):
        check_geometry(target, geometry, image_id)
    return geometries


def _box_targets(target: Boxes, geometry: ImageGeometry, grid: Sequence[int]) -> BoxTargets:
    cells = geometry.cells(grid[0], grid[1])
    steps = geometry.padded[0] / grid[0], geometry.padded[1] / grid[1]
    return BoxTargets(box_profiles(target.xyxy, cells, steps), cells)
