"""The LightningModule: what one training step and one validation step compute. No metric, no plot, no file format."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dataseg import optimization
from dataseg.losses import Criterion
from dataseg.merge import merge_target
from dataseg.network import MaskClassificationNetwork
from dataseg.optimization import Optimization
from dataseg.postprocess import PostProcessor
from dataseg.structures import Batch, ClassEmbeddings, DatasetSpec, Segments, Target, UserError
from dataseg.text import TextEmbeddings


class _FrozenVectors(nn.Module):
    """Class embeddings as buffers: they follow the module's device and stay out of its checkpoints."""

    vectors: Tensor
    class_index: Tensor

    def __init__(self, classes: ClassEmbeddings) -> None:
        super().__init__()
        self.register_buffer("vectors", classes.vectors, persistent=False)
        self.register_buffer("class_index", classes.class_index, persistent=False)
        self.num_classes = classes.num_classes

    def forward(self) -> ClassEmbeddings:
        return ClassEmbeddings(self.vectors, self.class_index, self.num_classes)


class CoTrainedSegmenter(pl.LightningModule):
    """One network, co-trained on data sets of different tasks (DaTaSeg).

    Args:
        network: shared by all data sets.
        criterion: losses; supervision follows each target's type.
        text: turns a vocabulary into the frozen vectors that are the classifier's only data-set-specific part.
        datasets: what is trained on or evaluated, by name. The command line links it from the data module.
        optimization: optimiser and schedule.
        postprocess: options of the three tasks' post-processing.
    """

    def __init__(
        self,
        network: MaskClassificationNetwork,
        criterion: Criterion,
        text: TextEmbeddings,
        datasets: dict[str, DatasetSpec],
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        postprocess: PostProcessor = PostProcessor(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.datasets = datasets
        self.optimization = optimization
        self.postprocess = postprocess
        self.text_provenance = text.provenance
        vocabularies = {spec.vocabulary.name: spec.vocabulary for spec in datasets.values()}
        self.class_embeddings = nn.ModuleDict({name: _FrozenVectors(text(v)) for name, v in vocabularies.items()})

    # ------------------------------------------------------------------------------------------------- training

    def training_step(self, batch: dict[str, Batch | None], batch_idx: int) -> dict[str, Any]:
        """One optimisation step's loss.

        Args:
            batch: by data set; None where the data set does not take part in this step. One is not None, or, with
                mixed batches, several: each then counts by its share of the images.

        Returns:
            "loss", a scalar, and "terms", the detached terms of the loss by data set that took part.
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
        """Weighted terms of one data set's loss, summed over decoder layers; scalars."""
        proposals = self.network(batch.images, self._classes(batch.dataset))
        targets = self.merged_targets(batch)
        normalizers = self._mean_over_ranks(self.criterion.normalizers(targets, proposals[-1]))
        terms: dict[str, Tensor] = self.criterion(proposals, batch, targets, normalizers)
        return terms

    def merged_targets(self, batch: Batch) -> list[Target]:
        """The batch's targets after MERGE."""
        is_thing = self.datasets[batch.dataset].vocabulary.is_thing.to(self.device)
        return [merge_target(target, is_thing, batch.task) for target in batch.targets]

    @staticmethod
    def _mean_over_ranks(values: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
            values = values / dist.get_world_size()
        return values

    # ----------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Segments]]:
        """Segments of each image at its original size, by task of the batch's data set."""
        proposals = self.network(batch.images, self._classes(batch.dataset))[-1]
        spec = self.datasets[batch.dataset]
        return {str(task): self.postprocess(proposals, batch, spec.vocabulary.is_thing, task) for task in spec.tasks}

    def _classes(self, dataset: str) -> ClassEmbeddings:
        vectors = cast(_FrozenVectors, self.class_embeddings[self.datasets[dataset].vocabulary.name])
        return vectors.forward()

    # --------------------------------------------------------------------------------------- optimiser, records

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.max_steps
        if total <= 0:
            raise UserError("trainer.max_steps must be set: runs are counted in steps, the data has no epochs")
        optimizer, schedule = optimization.build(self.network, total, self.optimization)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabularies"] = {name: spec.vocabulary.to_json() for name, spec in self.datasets.items()}
