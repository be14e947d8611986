"""Checkpointing of activations and torch.compile change what a step costs, not what it computes."""

import copy

import pytest
import tiny
import torch

from dataseg.network import Backbone, EncoderOnlyNetwork, MaskClassificationNetwork, PixelDecoder
from dataseg.structures import ClassEmbeddings, UserError

CLASSES = ClassEmbeddings(torch.eye(3, tiny.OPTIONS["text_dim"]), torch.arange(3))
NETWORKS = [*tiny.BACKBONES, tiny.ENCODER_ONLY]


def step(network):
    """Loss and gradients of a step that masks some queries."""
    network.train()
    network.start_step(seed=1, step=25, total_steps=100)
    network.zero_grad()
    torch.manual_seed(0)  # drop path
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    proposals = network(images, CLASSES)
    loss = sum(p.mask_logits.square().mean() + p.class_logits.square().mean() for p in proposals)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def saved_bytes(network):
    storages = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: storages.add(t.untyped_storage()) or t, lambda t: t):
        step(network)
    return sum(storage.nbytes() for storage in storages)


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_saves_memory_and_changes_no_gradient(name):
    kind = EncoderOnlyNetwork if name == tiny.ENCODER_ONLY else MaskClassificationNetwork
    networks = [tiny.network(name, activation_checkpointing=choice) for choice in kind.checkpointing]
    plain, *others = [step(network) for network in networks]
    for other in others:
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)
    saved = [saved_bytes(network) for network in networks]
    assert saved == sorted(saved, reverse=True)
    assert len(set(saved)) == len(saved)


def test_a_part_that_cannot_be_checkpointed_says_so():
    with pytest.raises(UserError, match="PixelDecoder offers no activation_checkpointing: take none"):
        PixelDecoder().checkpoint_activations()
    with pytest.raises(UserError, match="Backbone offers no activation_checkpointing: take none or deformable"):
        Backbone().checkpoint_activations()


@pytest.mark.parametrize(
    "name", ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vitdet", tiny.ENCODER_ONLY))]
)
def test_a_compiled_step_is_one_graph_and_equals_the_plain_one(name, monkeypatch):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=backend, fullgraph=True))
    network = tiny.network(name)
    plain = step(network)
    network.compile_training()
    torch.testing.assert_close(step(network), plain, rtol=1e-4, atol=1e-6)
    step(network)
    assert len(graphs) == 1, "no break, and nothing is compiled again for the next step"
    duplicate = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(step(duplicate)[0], plain[0]), "a copy runs its own weights, as averaged weights must"
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 96, 64), CLASSES)
    assert len(graphs) <= 2, "evaluation is not compiled"
