"""The LightningModule: what one training step and one validation step compute. No metric, no plot, no file format."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dataseg.checkpoint.load import is_run, load_run
from dataseg.checkpoint.mask2former import load_published
from dataseg.inference.postprocess import PostProcessor
from dataseg.inference.test_time_augmentation import segment
from dataseg.losses import Criterion
from dataseg.losses.matcher import NonFiniteCostError
from dataseg.merge import merge_target, unmerged_target
from dataseg.merge_predictions import merge_before_loss
from dataseg.network import LinearClassifier, MaskClassificationNetwork, TextClassifier
from dataseg.structures import (
    Batch,
    ClassEmbeddings,
    DatasetSpec,
    Proposals,
    Segments,
    Target,
    UserError,
    Vocabulary,
)
from dataseg.text.embeddings import TextEmbeddings
from dataseg.training import optimization, sharding
from dataseg.training.optimization import Optimization, ParameterSettings

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
        weights: to start from, of the same architecture: a ``.ckpt`` of a run, or a published Mask2Former, as a Hugging
            Face folder or a detectron2 ``.pkl`` or ``.pth`` file.
        classifier: "learnt" has a learnt vector per class of each vocabulary in place of the text vectors; a vocabulary
            that is never trained keeps its random start. "linear" keeps the class head of ``weights`` in place of the
            text classifier: evaluates a published model as published, on the one dataset that it knows.
        background: one learnt vector for all vocabularies, or one for each ("separate").
        merge: what MERGE is applied to before the loss. Predictions are merged in the mode of the semantic task's
            post-processing (``postprocess.semantic.merge``).
    """

    def __init__(
        self,
        network: MaskClassificationNetwork,
        criterion: Criterion,
        text: TextEmbeddings,
        datasets: dict[str, DatasetSpec],
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        postprocess: PostProcessor = PostProcessor(),  # noqa: B008 (frozen)
        weights: Path | None = None,
        classifier: Literal["text", "learnt", "linear"] = "text",
        background: Literal["shared", "separate"] = "shared",
        merge: Literal["targets", "predictions"] = "targets",
    ) -> None:
        super().__init__()
        self.cost_error: NonFiniteCostError | None = None  # of this optimisation step
        own_run = weights if weights is not None and is_run(weights) else None
        if own_run is not None and classifier == "linear":
            raise UserError(f"model.classifier=linear keeps a published class head, which {own_run} does not have")
        if weights is not None and own_run is None:
            head: Literal["linear", "drop"] = "linear" if classifier == "linear" else "drop"
            rank_zero_info(str(load_published(network, weights, class_head=head)))
        elif weights is None and classifier == "linear":
            raise UserError("model.classifier=linear keeps the class head of published weights: give model.weights too")
        self.network: MaskClassificationNetwork | FullyShardedDataParallel = network
        self.places: ParameterSettings | None = None  # for the optimiser, where the network's shapes are lost
        self.criterion = criterion
        self.datasets = datasets
        self.optimization = optimization
        self.postprocess = postprocess
        self.merge = merge
        no_text = {"learnt": "learnt vectors, none of text", "linear": f"class head of {weights}, none of text"}
        self.text_provenance = no_text.get(classifier) or text.provenance
        vocabularies = list(dict.fromkeys(spec.vocabulary for spec in datasets.values()))
        if classifier == "learnt":
            _vocabulary_head(network).learn_classes({name: len(v) for name, v in _by_name(vocabularies).items()})
        if background == "separate":
            _vocabulary_head(network).separate_backgrounds(_by_name(vocabularies))
        if own_run is not None:
            lacking = load_run(network, own_run)
            rank_zero_info(
                f"{own_run}: weights loaded" + f"; it learnt nothing of {', '.join(lacking)}" * bool(lacking)
            )
        if classifier == "linear":
            _check_class_counts(network, weights, datasets)
        # no text encoder is downloaded where none is needed
        embed: Callable[[Vocabulary], ClassEmbeddings] = text if classifier == "text" else _no_vectors
        self.class_embeddings = nn.ModuleList(_FrozenVectors(embed(vocabulary)) for vocabulary in vocabularies)
        self._position = {name: vocabularies.index(spec.vocabulary) for name, spec in datasets.items()}

    def configure_model(self) -> None:
        """Shard the network where the strategy asks for it (``conf/strategy/fsdp.yaml``, ``fsdp1.yaml``); once.

        Raises:
            UserError: Lightning's own FSDPStrategy, which knows neither the blocks nor the parameters' names; or
                weights of 16 bits.
        """
        strategy, network = self.trainer.strategy, self.network
        if str(self.trainer.precision).endswith("16-true"):
            raise UserError(f"trainer.precision={self.trainer.precision} is not for training: take bf16-mixed")
        if isinstance(network, FSDPModule | FullyShardedDataParallel):
            return
        if isinstance(strategy, sharding.FullySharded):
            mesh = init_device_mesh(strategy.root_device.type, (self.trainer.world_size,))
            sharding.shard(network, mesh, torch.bfloat16 if "bf16" in str(self.trainer.precision) else None)
        elif isinstance(strategy, sharding.FlatSharded):
            self.places = optimization.places(network, self.optimization)
            self.to(strategy.root_device)
            self.network = strategy.wrap(network)
        elif isinstance(strategy, FSDPStrategy):
            raise UserError("FSDPStrategy: take STRATEGY=fsdp1 (conf/strategy/fsdp1.yaml), which shards block by block")

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
        words = int(os.environ.get("PL_GLOBAL_SEED", "0")), self.trainer.global_step, part, self.global_rank
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

        Proposals that cannot be matched give NaN that hangs on all of them, and ``cost_error`` says why: were it
        raised here, other ranks would wait for this one's gradient.
        """
        proposals = self.network(batch.images, self._classes(batch.dataset))
        merged, targets, representatives = self._merged(proposals, batch)
        normalizers = self._mean_over_ranks(self.criterion.normalizers(targets, proposals[-1]))
        try:
            terms: dict[str, Tensor] = self.criterion(merged, batch, targets, normalizers, representatives)
        except NonFiniteCostError as error:
            self.cost_error = error
            terms = {name: _not_a_number(proposals) for name in self.criterion.weights}
        return terms

    def _merged(self, proposals: list[Proposals], batch: Batch) -> tuple[list[Proposals], list[Target], Tensor | None]:
        """Proposals, targets and representatives (see `Criterion`) after MERGE of the one or the other."""
        is_thing = self.datasets[batch.dataset].vocabulary.is_thing.to(self.device)
        if self.merge == "targets":
            return proposals, [merge_target(target, is_thing, batch.task) for target in batch.targets], None
        targets = [unmerged_target(target, is_thing, batch.task) for target in batch.targets]
        merged, representatives = merge_before_loss(
            proposals, batch.targets, is_thing, batch.task, self.postprocess.semantic.merge
        )
        return merged, targets, representatives

    @staticmethod
    def _mean_over_ranks(values: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
            values = values / dist.get_world_size()
        return values

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, but never pass on the gradient of a batch that could not be matched (see `loss_terms`)."""
        if self.cost_error is not None and any(p.grad is not None for p in self.parameters()):
            raise self.cost_error
        if isinstance(self.network, FullyShardedDataParallel) and gradient_clip_val:
            if gradient_clip_algorithm == "value":
                raise UserError(
                    "STRATEGY=fsdp1 clips the gradient's norm alone: set trainer.gradient_clip_algorithm=norm"
                )
            self.network.clip_grad_norm_(gradient_clip_val)  # Lightning leaves the norm over all ranks to the user
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ----------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Segments]]:
        """Segments of each image at its original size, by task of the batch's dataset."""
        classes = self._classes(batch.dataset)
        segments = segment(
            lambda images: cast(Proposals, self.network(images, classes)[-1]),
            batch,
            self.datasets[batch.dataset],
            self.postprocess,
        )
        return {str(task): predictions for task, predictions in segments.items()}

    def _classes(self, dataset: str) -> ClassEmbeddings:
        return cast(_FrozenVectors, self.class_embeddings[self._position[dataset]]).forward()

    # --------------------------------------------------------------------------------------- optimiser, records

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.max_steps
        if total <= 0:
            raise UserError("trainer.max_steps must be set: runs are counted in steps, the data has no epochs")
        optimizer, schedule = optimization.build(self.network, total, self.optimization, self.places)
        self.optimizer_settings = optimization.settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the vocabularies of a checkpoint be others than those here, where the classifier has vectors of them."""
        head = self.network.classifier
        state = checkpoint.get("state_dict")  # a sharded one was loaded by the strategy
        if isinstance(head, TextClassifier) and state is not None:
            lacking = head.align(state, "network.classifier.")
            if lacking:
                log.warning(
                    "the checkpoint was trained without the vocabularies %s: nothing is learnt of them", lacking
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabularies"] = {name: spec.vocabulary.to_json() for name, spec in self.datasets.items()}


def _vocabulary_head(network: MaskClassificationNetwork) -> TextClassifier:
    if not isinstance(network.classifier, TextClassifier):
        raise UserError(
            "model.classifier=learnt and model.background=separate need a TextClassifier as the network's classifier,"
            f" not {type(network.classifier).__name__}"
        )
    return network.classifier


def _by_name(vocabularies: Sequence[Vocabulary]) -> dict[str, Vocabulary]:
    """For what is learnt of each vocabulary, and kept in checkpoints by its name."""
    names = [vocabulary.name for vocabulary in vocabularies]
    twice = sorted({name for name in names if names.count(name) > 1})
    odd = sorted(name for name in names if "." in name or hasattr(nn.ModuleDict, name))
    if twice or odd:
        reason = f"the names {twice} stand for different classes" if twice else f"{odd} cannot be names of parameters"
        raise UserError(f"vectors are learnt by the names of vocabularies, but {reason}: rename them")
    return dict(zip(names, vocabularies, strict=True))


def _check_class_counts(
    network: MaskClassificationNetwork, weights: Path | None, datasets: Mapping[str, DatasetSpec]
) -> None:
    known = cast(LinearClassifier, network.classifier).num_classes
    others = {name: len(spec.vocabulary) for name, spec in datasets.items() if len(spec.vocabulary) != known}
    if others:
        raise UserError(
            f"the class head of {weights} knows {known} classes, but the datasets have {others}: it serves only the"
            " one that it was trained on. Take that one alone, as with EXP=r50_coco and"
            " ARGS=\"--data.val='{coco: conf/data/coco_val.yaml}'\""
        )


def _no_vectors(vocabulary: Vocabulary) -> ClassEmbeddings:
    """For a classifier that looks at the vocabulary's name and number of classes alone."""
    count = len(vocabulary)
    return ClassEmbeddings(torch.zeros(count, 1), torch.arange(count), count, vocabulary.name)


def _not_a_number(proposals: Sequence[Proposals]) -> Tensor:
    """NaN, connected to every layer's proposals as a loss is."""
    sums = [p.class_logits.sum() + p.mask_logits.sum() for p in proposals]
    return torch.stack(sums).sum() * torch.nan
