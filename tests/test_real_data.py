"""On real COCO and ADE20k images: the mini network overfits to them, the full R50 network takes steps."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn import functional

from callbacks import Evaluation, Panels
from data_modules import CoTraining
from data_modules.formats import AdeSemantic, CocoPanoptic, Objects365Boxes
from data_modules.transforms import TrainTransform
from dataseg.inference.postprocess import PostProcessor, SemanticOptions
from dataseg.inference.resize import ResizeShortestEdge
from dataseg.losses import Criterion
from dataseg.network import MaskClassificationNetwork, TimmBackbone
from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.encoder import TextEncoder
from dataseg.training.module import CoTrainedSegmenter
from dataseg.training.optimization import Optimization

pytestmark = pytest.mark.slow


class RandomText(TextEncoder):
    """A vector for each sentence, drawn by its characters: real text models are not at hand in tests."""

    def __init__(self, width: int) -> None:
        self.width = width

    @property
    def identity(self):
        return {"encoder": "random", "width": str(self.width)}

    def encode(self, sentences):
        seeds = [int.from_bytes(s.encode(), "little") % 2**62 for s in sentences]
        vectors = [torch.randn(self.width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return functional.normalize(torch.stack(vectors), dim=-1)


def text(tmp_path: Path, width: int) -> TextEmbeddings:
    return TextEmbeddings(RandomText(width), cache=tmp_path / "text.safetensors", templates="plain")


def test_mini_network_learns_real_images_by_heart(real_data, tmp_path):
    """At most five minutes on two cores; PQ >= 50 and mIoU >= 70 on the images it was trained on.

    Class scores are merged by max: at a temperature that has had no time to fall, the sum over all the queries that are
    background gives a class that nobody has seen, but whose vector is near the background's, the empty walls.
    """
    torch.set_num_threads(2)
    pl.seed_everything(0)
    coco = CocoPanoptic(split="val2017")
    ade = AdeSemantic(split="training")
    data = CoTraining(
        root=real_data,
        train={"coco": coco, "ade": ade},
        val={"coco": coco, "ade": ade},
        ratios={"coco": 1, "ade": 4},
        train_transform=TrainTransform(256, scale_range=(1.0, 1.0), flip=0.0),
        eval_transform=ResizeShortestEdge(256, 256),
        batch_size=2,
        num_workers=0,
    )
    backbone = TimmBackbone("convnext_zepto_rms", pretrained=False, freeze_norm=False)
    module = CoTrainedSegmenter(
        network=MaskClassificationNetwork(
            backbone,
            hidden_dim=64,
            num_queries=60,
            decoder_layers=3,
            pixel_decoder_layers=2,
            num_heads=4,
            feedforward_dim=256,
            pixel_decoder_feedforward_dim=128,
            text_dim=256,
        ),
        criterion=Criterion(num_points=2048),
        text=text(tmp_path, 256),
        datasets=data.specs,
        optimization=Optimization(lr=1e-3, backbone_lr_factor=1.0, warmup_steps=20, schedule="poly"),
        postprocess=PostProcessor(semantic=SemanticOptions(merge="max")),
    )
    evaluation = Evaluation()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1400,
        max_time={"minutes": 5},
        gradient_clip_val=5.0,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    logger = TensorBoardLogger(tmp_path, name="by_heart")  # its panels are there to be looked at
    trainer = pl.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=False, callbacks=[evaluation, Panels(images=6)]
    )
    trainer.validate(module, data, verbose=False)
    print(evaluation.results)
    assert evaluation.results["coco.pq"] >= 50
    assert evaluation.results["ade.miou"] >= 70


def test_full_r50_network_takes_steps_on_real_samples_of_all_three(real_data, tmp_path):
    pl.seed_everything(0)
    data = CoTraining(
        root=real_data,
        train={
            "ade": AdeSemantic(split="training"),
            "coco": CocoPanoptic(split="train2017"),
            "o365": Objects365Boxes(
                split="val", annotations="annotations/HANDMADE_zhiyuan_objv2_val_fixture.json", images="val"
            ),
        },
        ratios={"ade": 1, "coco": 1, "o365": 1},
        train_transform=TrainTransform(256),
        batch_size=2,
        num_workers=0,
    )
    module = CoTrainedSegmenter(
        network=MaskClassificationNetwork(TimmBackbone("resnet50", pretrained=False)),
        criterion=Criterion(),
        text=text(tmp_path, 768),
        datasets=data.specs,
        optimization=Optimization(lr=1e-3),
    )
    before = [p.detach().clone() for p in module.network.parameters()]
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=3, gradient_clip_val=0.01, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert trainer.global_step == 3
    names = [name for name, _ in module.network.named_parameters()]
    still = [n for n, old, new in zip(names, before, module.network.parameters(), strict=True) if torch.equal(old, new)]
    frozen = [n for n, p in module.network.named_parameters() if not p.requires_grad]
    assert set(still) <= set(frozen)
