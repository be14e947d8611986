"""An exported model small enough for tests, and a text encoder that needs no weights."""

import hashlib
import json

import tiny
import torch
import torch.nn.functional as F  # noqa: N812

from dataseg.deployment.model_file import ModelFile
from dataseg.structures import (
    ClassSpec,
    Vocabulary,
)
from dataseg.text.cache import TextCache
from dataseg.text.encoder import TextEncoder
from dataseg.text.templates import templates_of

DIM = tiny.OPTIONS["text_dim"]
BACKBONE = {"name": "test_convnext", "pretrained": True, "freeze_norm": False}
CONFIG = {
    "model": {
        "network": {
            "class_path": "dataseg.network.MaskClassificationNetwork",
            "init_args": {"backbone": {"class_path": "dataseg.network.TimmBackbone", "init_args": BACKBONE}}
            | tiny.OPTIONS,
        },
        "postprocess": {"panoptic": {"score_threshold": 0.0, "overlap_threshold": 0.0}},
    },
    "data": {"class_path": "data_modules.CoTraining", "init_args": {"eval_transform": {"size": 96, "max_size": 128}}},
}


class HashText(TextEncoder):
    """Vectors that depend on the sentence alone; remembers what it was asked."""

    def __init__(self, name: str = "hash", weights: str | None = None, dim: int = DIM) -> None:
        self.name, self.weights_sha256, self.dim, self.asked = name, weights, dim, []

    @property
    def identity(self):
        return {"model": self.name}

    def encode(self, sentences):
        self.asked += sentences
        seeds = [int.from_bytes(hashlib.sha256(s.encode()).digest()[:4], "big") for s in sentences]
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=-1)


def vocabulary(name: str, things: list[tuple[str, ...]], stuff: list[tuple[str, ...]]) -> Vocabulary:
    entries = [(p, True) for p in things] + [(p, False) for p in stuff]
    classes = [ClassSpec(10 + i, p[0], thing, p, (i, 0, 0)) for i, (p, thing) in enumerate(entries)]
    return Vocabulary(name, tuple(classes))


def things(*prompts: tuple[str, ...], name: str = "v") -> Vocabulary:
    return vocabulary(name, list(prompts), [])


PETS = vocabulary("pets", [("dog", "hound"), ("cat",)], [("sky",), ("grass", "lawn")])
ROADS = vocabulary("roads", [("car",)], [("road",), ("sky",)])


def make_model(**changes) -> ModelFile:
    torch.manual_seed(1)
    names = sorted({p for v in (PETS, ROADS) for c in v.classes for p in c.prompts})
    encoder = HashText()
    metadata = {
        "encoder": json.dumps(encoder.identity),
        "templates": json.dumps(templates_of("plain")),
        "template_set": "plain",
    }
    text = TextCache(encoder.encode(names), {name: row for row, name in enumerate(names)}, metadata)
    content = {
        "weights": tiny.network().state_dict(),
        "config": CONFIG,
        "vocabularies": {"home": PETS, "street": ROADS},
        "text": text,
        "provenance": {"step": 7, "figures": {"home.pq": 12.5}},
    }
    return ModelFile(**content | changes)
