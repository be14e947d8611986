"""The training loss: matching, class, mask, dice and projection terms over all decoder layers.

Images whose targets are of one kind (masks, boxes) are computed together, over all layers, filled up to one number of
segments; so that the number of operations does not follow the number of images, but for drawing their points.

Shape legend: ``L`` = decoder layers that predict, ``B`` = images of one kind of target, ``Q`` = queries, ``C`` =
classes, ``K`` = their largest number of segments, ``M = min(Q, K)`` = matched pairs, ``P`` = points, ``N`` = random
points that the P are chosen from, ``h, w`` = rows and columns of the mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from dataseg.losses.affinity import affinity_loss, color_similarity
from dataseg.losses.matcher import BoxTargets, HungarianMatcher, Matches, PointTargets, Targets, chunks
from dataseg.losses.points import (
    MaskTargets,
    check_geometry,
    sample_logits,
    select_uncertain,
    target_labels,
    uniform_points,
)
from dataseg.losses.terms import MaskLoss, box_profiles, dice_loss, mask_loss, projection_loss
from dataseg.structures import Batch, Boxes, Proposals, UserError
from dataseg.structures.geometry import ImageGeometry

MATCHING_STREAM, LOSS_STREAM = 0, 1
"""Numbers of the streams of random points that one sample's seed gives."""


@dataclass(frozen=True)
class _Group:
    """The images of a batch whose targets are of one kind.

    Attributes:
        batch: all of it.
        targets: after MERGE.
        regions: where mask losses are taken: the image, or all of the padded input.
        masks: None = boxes.
    """

    batch: Batch
    targets: Targets
    regions: list[ImageGeometry]
    masks: MaskTargets | None

    def points(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        """Random points where losses are taken, float ``[B, *shape, 2]`` in [0, 1] of the padded input."""
        device = self.targets.labels.device
        seeds = [self.batch.seeds[i] for i in self.targets.images]
        points = torch.stack([uniform_points(seed, stream, shape, device) for seed in seeds])
        if all(region.size == region.padded for region in self.regions):
            return points
        shares = [(r.size[1] / r.padded[1], r.size[0] / r.padded[0]) for r in self.regions]
        return points * points.new_tensor(shares).view(len(points), *(1,) * len(shape), 2)


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
            batch: targets are those after MERGE, on the proposals' device. With ``step_targets`` the sums are divided
                by the mean over the step's batches, equally large, so that the mean of their losses is that of one
                large batch.
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
        device = proposals[0].class_logits.device
        with torch.autocast(device_type=device.type, enabled=False):
            groups = self._groups(batch, (proposals[0].mask_logits.shape[2], proposals[0].mask_logits.shape[3]))
            counts = [count for group in groups for count in group.targets.counts]
            of_step = [len(target_labels(target)) for target in batch.step_targets] if batch.step_targets else counts
            normalizers = mean_over_ranks(self._normalizers(of_step, proposals[0].class_logits.shape[1], device))
            share = len(counts) / len(of_step)
            segments, class_weights = normalizers[0].clamp(min=1) * share, normalizers[1] * share
            targets = [group.targets for group in groups]
            matches = self.matcher(proposals, targets, batch.image_ids, representatives)
            losses = {"class": self._class_sum(proposals, targets, matches, representatives) / class_weights}
            sums = dict.fromkeys(self.weights, _connected_zero(proposals, matches))
            for group, matched in zip(groups, matches, strict=True):
                if matched.queries.shape[2]:
                    logits = _matched_logits(proposals, group.targets, matched)
                    terms = self._box_terms if group.masks is None else self._point_terms
                    sums |= {name: sums[name] + value for name, value in terms(logits, group, matched).items()}
            losses |= {name: sums[name] / segments for name in self.weights if name != "class"}
            return {name: self.weights[name] * losses[name] for name in self.weights}

    def _groups(self, batch: Batch, grid: tuple[int, int]) -> list[_Group]:
        """The images with masks and those with boxes, as far as there are any; checks that sizes agree."""
        padded = batch.images.shape[2], batch.images.shape[3]
        geometries = [ImageGeometry(padded, size) for size in batch.sizes]
        for target, geometry, image_id in zip(batch.targets, geometries, batch.image_ids, strict=True):
            check_geometry(target, geometry, image_id)
        if self.padding == "background":
            regions = [ImageGeometry(padded, padded)] * len(batch)
        else:
            regions = geometries
        boxed = [i for i, target in enumerate(batch.targets) if isinstance(target, Boxes)]
        masked = [i for i in range(len(batch)) if i not in boxed]
        groups = [self._mask_group(batch, masked, regions)] if masked else []
        return [*groups, _box_group(batch, boxed, regions, grid)] if boxed else groups

    def _mask_group(self, batch: Batch, images: list[int], regions: Sequence[ImageGeometry]) -> _Group:
        chosen = [target for target in (batch.targets[i] for i in images) if not isinstance(target, Boxes)]
        masks = MaskTargets.of(chosen, [batch.sizes[i] for i in images], regions[0].padded)
        labels = [target_labels(target) for target in chosen]
        targets = Targets(images, pad_sequence(labels, batch_first=True), [len(own) for own in labels], None)
        group = _Group(batch, targets, [regions[i] for i in images], masks)
        if not any(group.targets.counts):
            return group
        points_BP2 = group.points(MATCHING_STREAM, (self.num_points,))
        return replace(group, targets=replace(group.targets, masks=PointTargets(points_BP2, *masks.at(points_BP2))))

    def _normalizers(self, counts: Sequence[int], num_queries: int, device: torch.device) -> Tensor:
        matched = sum(min(num_queries, count) for count in counts)
        background = num_queries * len(counts) - matched
        return torch.tensor([float(sum(counts)), matched + self.no_object_weight * background], device=device)

    def _class_sum(
        self,
        proposals: Sequence[Proposals],
        targets: Sequence[Targets],
        matches: Sequence[Matches],
        representatives: Tensor | None,
    ) -> Tensor:
        logits_LBQC = torch.stack([p.class_logits for p in proposals]).float()
        background, queries = logits_LBQC.shape[-1] - 1, logits_LBQC.shape[2]
        weights_C = logits_LBQC.new_ones(background + 1)
        weights_C[background] = self.no_object_weight
        classes_LBQ = torch.full(logits_LBQC.shape[:3], background, device=logits_LBQC.device)
        for group, matched in zip(targets, matches, strict=True):
            matched_LBM = group.labels.expand(len(proposals), -1, -1).gather(2, matched.segments)
            own_LBQ = matched_LBM.new_full((*matched_LBM.shape[:2], queries + 1), background)  # the last: no pair
            own_LBQ.scatter_(2, matched.queries.masked_fill(~matched.real, queries), matched_LBM)
            classes_LBQ[:, group.images] = own_LBQ[..., :queries]
        if representatives is not None:
            matched_LBQ = classes_LBQ != background
            classes_LBQ = torch.where(matched_LBQ, classes_LBQ, classes_LBQ.gather(2, representatives))
            losses = functional.cross_entropy(logits_LBQC.flatten(0, 2), classes_LBQ.flatten(), reduction="none")
            return torch.where(matched_LBQ.flatten(), losses, self.no_object_weight * losses).sum()
        return functional.cross_entropy(logits_LBQC.flatten(0, 2), classes_LBQ.flatten(), weights_C, reduction="sum")

    def _point_terms(self, logits_LBMhw: Tensor, group: _Group, matched: Matches) -> dict[str, Tensor]:
        """Sums of the mask and dice terms."""
        layers, images, pairs = matched.queries.shape
        uniform = self.num_points - self.num_uncertain
        points_BLN2 = group.points(LOSS_STREAM, (layers, self.num_candidates + uniform))
        sums = []
        parts = chunks(layers, images * pairs * self.num_candidates, points_BLN2.device)
        # split, not slices: their backward would fill up and add all layers for each part
        of_parts = torch.split(logits_LBMhw, [part.stop - part.start for part in parts])
        for part, part_LBMhw in zip(parts, of_parts, strict=True):
            logits_LMP, values_LMP, valid_LMP = self._sampled(
                part_LBMhw, points_BLN2[:, part], matched.segments[part], matched.real, group
            )
            point = mask_loss(logits_LMP, values_LMP, valid_LMP, self.mask_loss).sum()
            sums.append(torch.stack([point, dice_loss(logits_LMP, values_LMP, valid_LMP).sum()]))
        mask, dice = torch.stack(sums).sum(0)
        return {"mask": mask, "dice": dice}

    def _sampled(
        self, logits_LBMhw: Tensor, points_BLN2: Tensor, segments_LBM: Tensor, real_BM: Tensor, group: _Group
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, values and validity at uncertain and at uniform points, ``[L * B, M, P]``."""
        assert group.masks is not None
        layers, images = segments_LBM.shape[:2]
        with torch.no_grad():
            values_BKX, valid_BX = group.masks.at(points_BLN2.flatten(1, 2))
            layer_L11 = torch.arange(layers, device=segments_LBM.device)[:, None, None]
            image_B1 = torch.arange(images, device=segments_LBM.device)[:, None]
            values_BKLN = values_BKX.view(*values_BKX.shape[:2], layers, -1)
            values_LBMN = values_BKLN[image_B1, segments_LBM, layer_L11]
            valid_LBN = valid_BX.view(images, layers, -1).transpose(0, 1)
            points_LBN2 = points_BLN2.transpose(0, 1)
            candidates_XN2 = points_LBN2[:, :, : self.num_candidates].flatten(0, 1)
            scores_XMN = sample_logits(logits_LBMhw.flatten(0, 1), candidates_XN2)
            chosen_XMP = select_uncertain(
                scores_XMN, valid_LBN[..., : self.num_candidates].flatten(0, 1), self.num_uncertain
            )
            others_P = torch.arange(self.num_candidates, points_LBN2.shape[2], device=chosen_XMP.device)
            chosen_LBMP = torch.cat([chosen_XMP, others_P.expand(*chosen_XMP.shape[:2], -1)], -1)
            chosen_LBMP = chosen_LBMP.view(layers, images, *chosen_LBMP.shape[1:])
            wide = (-1, -1, chosen_LBMP.shape[2], -1)
            values_LBMP = values_LBMN.gather(3, chosen_LBMP)
            valid_LBMP = valid_LBN[:, :, None].expand(wide).gather(3, chosen_LBMP) & real_BM[..., None]
            # x and y as one number: a single gather
            complex_LBN = torch.view_as_complex(points_LBN2)
            points_LBMP2 = torch.view_as_real(complex_LBN[:, :, None].expand(wide).gather(3, chosen_LBMP))
        sampled = sample_logits(logits_LBMhw.flatten(0, 2)[:, None], points_LBMP2.flatten(0, 2))
        return sampled.view(values_LBMP.shape), values_LBMP, valid_LBMP

    def _box_terms(self, logits_LBMhw: Tensor, group: _Group, matched: Matches) -> dict[str, Tensor]:
        """Sums of the projection (and affinity) terms."""
        boxes = group.targets.masks
        assert isinstance(boxes, BoxTargets)
        images_B1 = torch.arange(len(group.targets.images), device=logits_LBMhw.device)[:, None]
        onto_x, onto_y = (profile[images_B1, matched.segments] for profile in boxes.profiles)
        losses_LBM = projection_loss(boxes.profiles_of(logits_LBMhw), (onto_x, onto_y))
        terms = {"projection": (losses_LBM * matched.real).sum()}
        if "affinity" in self.weights:
            grid = logits_LBMhw.shape[-2], logits_LBMhw.shape[-1]
            terms["affinity"] = logits_LBMhw.new_zeros(())
            for i, (position, region) in enumerate(zip(group.targets.images, group.regions, strict=True)):
                rows, columns = ImageGeometry(region.padded, group.batch.sizes[position]).cells(*grid)
                similarity_Ehw = color_similarity(group.batch.images[position], (rows, columns), grid)
                inside_LMhw = onto_x[:, i, :, None, :columns] * onto_y[:, i, :, :rows, None]
                image_logits = logits_LBMhw[:, i, :, :rows, :columns]
                losses_LM = affinity_loss(image_logits, similarity_Ehw, inside_LMhw, self.affinity_threshold)
                terms["affinity"] = terms["affinity"] + (losses_LM * matched.real[i]).sum()
        return terms


def _box_group(batch: Batch, images: list[int], regions: Sequence[ImageGeometry], grid: tuple[int, int]) -> _Group:
    chosen = [target for target in (batch.targets[i] for i in images) if isinstance(target, Boxes)]
    labels = [target.labels for target in chosen]
    targets = Targets(images, pad_sequence(labels, batch_first=True), [len(own) for own in labels], None)
    if any(targets.counts):
        padded, device = regions[0].padded, labels[0].device
        cells_B2 = torch.tensor([regions[i].cells(*grid) for i in images], device=device)
        rows_B1, columns_B1 = cells_B2[:, :1], cells_B2[:, 1:]
        inside = None
        if any(regions[i].size != padded for i in images):
            inside = torch.arange(grid[0], device=device)[:, None] < rows_B1[..., None]
            inside = inside & (torch.arange(grid[1], device=device) < columns_B1[..., None])
        xyxy_BK4 = pad_sequence([target.xyxy for target in chosen], batch_first=True)
        steps = padded[0] / grid[0], padded[1] / grid[1]
        profiles = box_profiles(xyxy_BK4, grid, steps, (rows_B1 - 1, columns_B1 - 1))
        targets = replace(targets, masks=BoxTargets(profiles, inside))
    return _Group(batch, targets, [regions[i] for i in images], None)


def _matched_logits(proposals: Sequence[Proposals], targets: Targets, matched: Matches) -> Tensor:
    """Mask logits of the matched queries, float32 ``[L, B, M, h, w]``; of the first query where there is no pair.

    One gather per layer: its backward writes each layer's gradient once, matched or not.
    """
    images_B1 = torch.tensor(targets.images, device=matched.queries.device)[:, None]
    return torch.stack(
        [p.mask_logits[images_B1, own].float() for p, own in zip(proposals, matched.queries, strict=True)]
    )


def _connected_zero(proposals: Sequence[Proposals], matches: Sequence[Matches]) -> Tensor:
    """0, connected to every layer's proposals, so that all ranks have gradients for the same parameters.

    One logit of each layer is enough for its classes. Masks are connected by their own terms, or by a sum over none
    of them where nothing is matched.
    """
    first = proposals[0].class_logits.new_zeros((), dtype=torch.float32)
    if not any(matched.queries.shape[2] for matched in matches):
        first = torch.stack([p.mask_logits[:0].float().sum() for p in proposals]).sum()
    return 0.0 * sum((p.class_logits[0, 0, 0].float() for p in proposals), start=first)
