"""The LightningModule: what one training step and one validation step compute. No metric, no plot, no file format."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dataseg.checkpoint.fit_report import FitReport
from dataseg.inference.postprocess import PostProcessor
from dataseg.inference.test_time_augmentation import segment
from dataseg.losses import Criterion
from dataseg.losses.matcher import NonFiniteCostError
from dataseg.merge import merge_target, unmerged_target
from dataseg.merge_predictions import merge_before_loss
from dataseg.network import PerVocabularyClassifier, SegmentationNetwork
from dataseg.structures import (
    Batch,
    ClassEmbeddings,
    DatasetSpec,
    Proposals,
    Segments,
    UserError,
)
from dataseg.text.embeddings import TextEmbeddings
from dataseg.training import optimization
from dataseg.training.build import BackgroundKind, ClassifierKind, prepare
from dataseg.training.optimization import Optimization, freeze
from dataseg.training.sharding import FullySharded, shard

log = logging.getLogger(__name__)


class _FrozenVectors(nn.Module):
    """Class embeddings as buffers: they follow the module's device and stay out of its checkpoints."""

    vectors: Tensor
    class_index: Tensor

    def __init__(self, classes: ClassEmbeddings) -> None:
        super().__init__()
        self.register_buffer("vectors", classes.vectors, persistent=False)
        self.register_buffer("class_index", classes.class_index, persistent=False)
        self.num_classes = classes.num_classes
        self.vocabulary = classes.vocabulary

    def forward(self) -> ClassEmbeddings:
        return ClassEmbeddings(self.vectors, self.class_index, self.num_classes, self.vocabulary)


class CoTrainedSegmenter(pl.LightningModule):
    """One network, co-trained on datasets of different tasks (DaTaSeg).

    Args:
        network: shared by all datasets.
        criterion: losses; supervision follows each target's type.
        text: turns a vocabulary into the frozen vectors that are the classifier's only dataset-specific part.
        datasets: what is trained on or evaluated, by name. The command line links it from the data module.
        optimization: optimiser and schedule.
        postprocess: options of the three tasks' post-processing.
        weights: to start from, of the same architecture: a ``.ckpt`` of a run, or a published Mask2Former or EoMT, as a
            Hugging Face folder, a detectron2 ``.pkl`` or ``.pth`` file, or an EoMT's ``.bin`` file.
        classifier: "centered" subtracts the mean of all trained vocabularies' text vectors from each. "learnt" has a
            learnt vector per class of each vocabulary in place of the text vectors; a vocabulary that is never trained
            keeps its random start. "linear" keeps the class head of ``weights`` in place of the text classifier:
            evaluates a published model as published, on the one dataset that it knows.
        background: one learnt vector for all vocabularies, or one for each ("separate").
        merge: what MERGE is applied to before the loss. Predictions are merged in the mode of the semantic task's
            post-processing (``postprocess.semantic.merge``).
        compile: run the network's training pass through torch.compile: minutes at the start, then fewer and larger
            operations.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        criterion: Criterion,
        text: TextEmbeddings,
        datasets: dict[str, DatasetSpec],
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        postprocess: PostProcessor = PostProcessor(),  # noqa: B008 (frozen)
        weights: Path | None = None,
        classifier: ClassifierKind = "text",
        background: BackgroundKind = "shared",
        merge: Literal["targets", "predictions"] = "targets",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.cost_error: NonFiniteCostError | None = None  # of this optimisation step
        embeddings = prepare(network, text, datasets, weights, classifier, background)
        self.text_provenance = embeddings.provenance
        freeze(network, optimization.frozen)
        if compile:
            network.compile_training()
        self.network = network
        self.criterion = criterion
        self.datasets = datasets
        self.optimization = optimization
        self.postprocess = postprocess
        self.merge = merge
        vocabularies = list(dict.fromkeys(spec.vocabulary for spec in datasets.values()))
        self.class_embeddings = nn.ModuleList(_FrozenVectors(embeddings(vocabulary)) for vocabulary in vocabularies)
        self._position = {name: vocabularies.index(spec.vocabulary) for name, spec in datasets.items()}

    def configure_model(self) -> None:
        """Shard the network where the strategy asks for it (``conf/strategy/fsdp.yaml``); once.

        Raises:
            UserError: Lightning's own FSDPStrategy, which is FSDP1; or weights of 16 bits.
        """
        strategy, network = self.trainer.strategy, self.network
        if str(self.trainer.precision).endswith("16-true"):
            raise UserError(f"trainer.precision={self.trainer.precision} is not for training: take bf16-mixed")
        if isinstance(strategy, FSDPStrategy):
            raise UserError(
                "FSDPStrategy (FSDP1) is not supported: take STRATEGY=fsdp (conf/strategy/fsdp.yaml), FSDP2"
            )
        if isinstance(strategy, FullySharded) and not isinstance(network, FSDPModule):
            mesh = init_device_mesh(strategy.root_device.type, (self.trainer.world_size,))
            shard(network, mesh, torch.bfloat16 if "bf16" in str(self.trainer.precision) else None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's.

        Raises:
            UserError: the state dict is of another network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError:
            FitReport.of(state_dict, self.state_dict()).require("the checkpoint")
            raise

    def on_fit_start(self) -> None:
        """Refuse batch norms that would see a different mean on every rank.

        Raises:
            UserError: several ranks, and batch norms that are neither frozen nor synchronised.
        """
        free = [name for name, m in self.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        if self.trainer.world_size > 1 and free:
            raise UserError(
                f"{len(free)} batch norms ({free[0]}, ...) would have other statistics on each of"
                f" {self.trainer.world_size} processes: freeze them (backbone.init_args.freeze_norm=true) or, with"
                " STRATEGY=ddp on GPUs, set trainer.sync_batchnorm=true"
            )

    # ------------------------------------------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """A resumed run takes learning rates and weight decay from the configuration, not from the checkpoint."""
        schedule = cast(LambdaLR, self.trainer.lr_scheduler_configs[0].scheduler)
        changes = optimization.configure(self.trainer.optimizers[0], schedule, self.optimizer_settings)
        if changes and self.trainer.is_global_zero:
            log.warning("the configuration's optimisation, not the checkpoint's: %s", "; ".join(changes))

    def on_train_batch_start(self, batch: dict[str, Batch | None], batch_idx: int) -> None:
        """Seed what the network draws itself (drop path, dropout) by step, so that a resumed run draws the same."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        if part == 0:
            self.cost_error = None
        seed, step = int(os.environ.get("PL_GLOBAL_SEED", "0")), self.trainer.global_step
        self.network.start_step(seed, step, self.trainer.max_steps)
        words = seed, step, part, self.global_rank
        digest = hashlib.sha256(repr(words).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little"))

    def training_step(self, batch: dict[str, Batch | None], batch_idx: int) -> dict[str, Any]:
        """One optimisation step's loss.

        Args:
            batch: by dataset; None where the dataset does not take part in this step. One is not None, or, with
                mixed batches, several: each then counts by its share of the images.

        Returns:
            "loss", a scalar, and "terms", the detached terms of the loss by dataset that took part.
        """
        parts = [part for part in batch.values() if part is not None]
        images = sum(len(part) for part in parts)
        terms = {part.dataset: self.loss_terms(part) for part in parts}
        losses = [torch.stack(list(terms[part.dataset].values())).sum() * (len(part) / images) for part in parts]
        loss = torch.stack(losses).sum()
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        detached = {name: {term: v.detach() for term, v in values.items()} for name, values in terms.items()}
        return {"loss": loss, "terms": detached}

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of one dataset's loss, summed over decoder layers; scalars.

        Proposals that cannot be matched give NaN, connected to all of them in the graph, and ``cost_error`` says why:
        were it raised here, other ranks would wait for this one's gradient.
        """
        proposals = self.network(batch.images, self.classes(batch.dataset), batch.sizes)
        merged, batch, representatives = self._merged(proposals, batch)
        try:
            terms: dict[str, Tensor] = self.criterion(merged, batch, _mean_over_ranks, representatives)
        except NonFiniteCostError as error:
            self.cost_error = error
            terms = {name: _connected_nan(proposals) for name in self.criterion.weights}
        return terms

    def _merged(self, proposals: list[Proposals], batch: Batch) -> tuple[list[Proposals], Batch, Tensor | None]:
        """Proposals, batch and representatives (see `Criterion`) after MERGE of the predictions or the targets."""
        is_thing = self.datasets[batch.dataset].vocabulary.is_thing.to(self.device)
        merge = merge_target if self.merge == "targets" else unmerged_target
        targets = [merge(target, is_thing, batch.task) for target in batch.targets]
        step_targets = batch.step_targets and [merge(target, is_thing, batch.task) for target in batch.step_targets]
        changed = replace(batch, targets=targets, step_targets=step_targets)
        if self.merge == "targets":
            return proposals, changed, None
        merged, representatives = merge_before_loss(
            proposals, batch.targets, is_thing, batch.task, self.postprocess.semantic.merge
        )
        return merged, changed, representatives

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, but never pass on the gradient of a batch that could not be matched (see `loss_terms`)."""
        if self.cost_error is not None and any(p.grad is not None for p in self.parameters()):
            raise self.cost_error
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ----------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Segments]]:
        """Segments of each image at its original size, by task of the batch's dataset."""
        classes = self.classes(batch.dataset)
        segments = segment(
            lambda images, sizes: cast(Proposals, self.network(images, classes, sizes)[-1]),
            batch,
            self.datasets[batch.dataset],
            self.postprocess,
        )
        return {str(task): predictions for task, predictions in segments.items()}

    def classes(self, dataset: str) -> ClassEmbeddings:
        """What the classifier is given of a dataset, by its name."""
        return cast(_FrozenVectors, self.class_embeddings[self._position[dataset]]).forward()

    # --------------------------------------------------------------------------------------- optimiser, records

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.max_steps
        if total <= 0:
            raise UserError("trainer.max_steps must be set: runs are counted in steps, the data has no epochs")
        optimizer, schedule = optimization.build(self.network, total, self.optimization)
        self.optimizer_settings = optimization.settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the vocabularies of a checkpoint be others than those here, where the classifier has vectors of them."""
        head = self.network.classifier
        state = checkpoint.get("state_dict")  # a sharded one was loaded by the strategy
        if isinstance(head, PerVocabularyClassifier) and state is not None:
            lacking = head.align(state, "network.classifier.")
            if lacking:
                log.warning(
                    "the checkpoint was trained without the vocabularies %s: nothing is learnt of them", lacking
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabularies"] = {name: spec.vocabulary.to_json() for name, spec in self.datasets.items()}


def _mean_over_ranks(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values


def _connected_nan(proposals: Sequence[Proposals]) -> Tensor:
    """NaN, connected to every layer's proposals as a loss is."""
    sums = [p.class_logits.sum() + p.mask_logits.sum() for p in proposals]
    return torch.stack(sums).sum() * torch.nan
