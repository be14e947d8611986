"""`dataseg plan`, against real networks of small size."""

import dataclasses
import socket
from pathlib import Path

import pytest
import torch
from cli_runs import SMALL
from torch.utils.flop_counter import FlopCounterMode

from dataseg.cli.plan import main
from dataseg.experiments import plan
from dataseg.network import EncoderOnlyNetwork, MaskClassificationNetwork, PlainViT, TimmBackbone
from dataseg.structures import ClassEmbeddings, UserError

ROOT = Path(__file__).resolve().parents[3]
SIZE, CLASSES, WIDTH = 96, 7, 24


def network() -> MaskClassificationNetwork:
    backbone = TimmBackbone("test_convnext", pretrained=False, freeze_norm=False)
    return MaskClassificationNetwork(backbone, 32, 8, 2, 1, 4, 32, 32, WIDTH).train()


def fake_network() -> MaskClassificationNetwork:
    with torch.device("meta"):
        return network()


def forward(real: MaskClassificationNetwork):
    vectors = ClassEmbeddings(torch.randn(CLASSES, WIDTH), torch.arange(CLASSES), CLASSES, "")
    proposals = real(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), vectors)
    return [t for p in proposals for t in (p.mask_logits, p.class_logits)]


def test_parameters_are_those_of_the_real_network():
    real = network()
    real.pixel_decoder.requires_grad_(False)
    fake = fake_network()
    fake.pixel_decoder.requires_grad_(False)
    trained = sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert plan.parameters(fake) == (sum(p.numel() for p in real.parameters()), trained)


def test_memory_and_operations_are_those_of_a_real_step():
    real = network()
    own = {t.untyped_storage().data_ptr() for t in (*real.parameters(), *real.buffers())}
    kept: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as first, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        logits = forward(real)
    with FlopCounterMode(display=False) as second:
        torch.autograd.backward(logits, [torch.ones_like(t) for t in logits])
    cost = plan.step_cost(fake_network(), SIZE, CLASSES, WIDTH, segments=3, precision="32-true")
    assert cost.flops == first.get_total_flops() + second.get_total_flops()
    assert 300 < cost.operations < 3000  # of arithmetic, none that asks a tensor for its device
    assert 1.0 <= cost.saved / sum(kept.values()) < 1.15  # what lives beside it: results that are not saved
    assert 1.0 <= cost.peak / cost.saved < 1.5


def test_an_encoder_only_network_checkpoints_its_blocks():
    costs = []
    for checkpointing in EncoderOnlyNetwork.checkpointing:
        with torch.device("meta"):
            vit = PlainViT("test_vit", pretrained=False, options={"img_size": SIZE})
            fake = EncoderOnlyNetwork(
                vit, num_blocks=1, num_queries=8, text_dim=WIDTH, activation_checkpointing=checkpointing
            )
        costs.append(plan.step_cost(fake, SIZE, CLASSES, WIDTH, segments=3, precision="bf16-mixed"))
    plain, checkpointed = costs
    assert checkpointed.saved < plain.saved
    assert checkpointed.flops > plain.flops


def test_sixteen_bits_take_less():
    half, single = (
        plan.step_cost(fake_network(), SIZE, CLASSES, WIDTH, segments=3, precision=p) for p in ("bf16-mixed", "32-true")
    )
    assert half.peak < single.peak
    assert half.flops == single.flops


def test_a_run_adds_up():
    cost = plan.StepCost(saved=0, peak=2 * plan.GIB, flops=10**12, moved=10**10, operations=1000)
    run = plan.Run(batch=16, steps=86400, accumulate=1, image_size=1280, checkpoints=2)
    gpu = plan.Gpu(memory=40, half=100, single=50, bandwidth=1)
    found = plan.plan(cost, plan.GIB, 0, run, gpu, gpus=4, sharded=True, half=True, used=0.5)
    assert (found.images, found.most, found.memory / plan.GIB, found.fits) == (4, 16, 4 + 8, True)
    assert found.seconds == pytest.approx(4 * (1 / 100 + 0.01) / 0.5)
    assert found.days == pytest.approx(found.seconds)
    assert found.cores == 2  # 100 images a second, each as large as four
    assert found.disk == 2 * 12 * plan.GIB
    slow = dataclasses.replace(cost, operations=10**5)
    assert plan.plan(slow, plan.GIB, 0, run, gpu, gpus=4, sharded=True, half=True, used=0.5).seconds == 1
    assert not plan.plan(cost, 3 * plan.GIB, 0, run, gpu, gpus=4, sharded=False, half=True, used=0.5).fits


def test_needs_neither_data_nor_network(monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(ROOT)
    small = [f"--config={ROOT / 'conf/exp/mini_all.yaml'}", "--data.root=/nowhere", *SMALL]
    assert main([*small, "--gpus=2", "--gpu=a100-40", "--data.train_transform.image_size=64"]) == 0
    out = capsys.readouterr().out
    assert "2 x a100-40: 40 GiB" in out
    assert out.count("bf16-mixed ") == out.count("32-true ") == 6  # ddp, fsdp; none, deformable, all
    assert out.count("deformable") == 4


def test_an_unknown_gpu_names_the_others():
    with pytest.raises(UserError, match=r"GPU=h100 is not known; choose one of .*h100-80"):
        plan.gpu_of("h100")
