import pytest
import torch
from torch import nn

from dataseg.checkpoint.state_dict_adapter import HUGGING_FACE, translate
from dataseg.structures import UserError
from dataseg.training.optimization import (
    Optimization,
    build,
    configure,
    freeze,
    lr_factor,
    parameter_groups,
    settings,
)


class _Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.norm = nn.GroupNorm(1, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))

    def no_weight_decay(self):
        return {"pos_embed"}

    def lr_scale(self, name):
        return 0.5 if name.startswith("conv") else 1.0


class _Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = _Backbone()
        self.head = nn.Linear(4, 4)
        self.queries = nn.Embedding(10, 4)


def test_every_trainable_parameter_stands_in_one_group():
    network = _Network()
    groups = parameter_groups(network, Optimization())
    grouped = [id(p) for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in network.parameters() if p.requires_grad}


def test_decay_and_learning_rate_by_parameter():
    network = _Network()
    options = Optimization(lr=1.0, weight_decay=0.05, backbone_lr_factor=0.1)
    of = {id(p): g for g in parameter_groups(network, options) for p in g["params"]}
    assert of[id(network.head.weight)]["weight_decay"] == 0.05
    for parameter in (network.head.bias, network.queries.weight, network.backbone.norm.weight):
        assert of[id(parameter)]["weight_decay"] == 0
    assert of[id(network.backbone.pos_embed)]["weight_decay"] == 0
    assert of[id(network.head.weight)]["lr"] == 1.0
    assert of[id(network.backbone.conv.weight)]["lr"] == pytest.approx(0.05)
    assert of[id(network.backbone.norm.weight)]["lr"] == pytest.approx(0.1)


def test_schedules():
    step = Optimization(warmup_steps=10)
    assert lr_factor(0, 1000, step) == pytest.approx(0.1)
    assert lr_factor(10, 1000, step) == 1.0
    assert lr_factor(900, 1000, step) == pytest.approx(0.1)
    assert lr_factor(950, 1000, step) == pytest.approx(0.01)
    poly = Optimization(schedule="poly", poly_power=1.0)
    assert lr_factor(250, 1000, poly) == pytest.approx(0.75)
    assert lr_factor(1000, 1000, poly) == 0.0
    assert lr_factor(999, 1000, Optimization(schedule="constant")) == 1.0


def test_two_stage_warm_up():
    """New parameters first, then the backbone."""
    options = Optimization(lr=1.0, backbone_lr_factor=1.0, warmup_steps=4, backbone_warmup_steps=2, schedule="constant")
    network = _Network()
    optimizer, schedule = build(network, 100, options)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rates = []
    for _ in range(7):
        parameters = (network.head.weight, network.backbone.norm.weight)
        rates.append(tuple(group_of[id(p)]["lr"] for p in parameters))
        optimizer.step()
        schedule.step()
    assert rates == [(0.25, 0), (0.5, 0), (0.75, 0), (1, 0), (1, 0.5), (1, 1), (1, 1)]


def test_decay_of_everything():
    groups = parameter_groups(_Network(), Optimization(decayed="all"))
    assert {group["weight_decay"] for group in groups} == {0.05}


def test_schedule_drives_the_optimizer():
    optimizer, schedule = build(_Network(), 10, Optimization(lr=1.0, schedule="poly", poly_power=1.0))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    head = [g for g in optimizer.param_groups if g["name"].startswith("head")]
    assert all(g["lr"] == pytest.approx(0.5) for g in head)


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"milestones": (1.5,)}, {"milestones": (0.9, 0.5)}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=r"lr|milestones"):
        Optimization(**bad)


def test_a_checkpoints_optimizer_takes_the_configuration_that_is_asked_for():
    def trained(options, steps, state=None):
        network = _Network()
        optimizer, schedule = build(network, 20, options)
        wanted = settings(optimizer)
        if state is not None:
            optimizer.load_state_dict(state[0])
            schedule.load_state_dict(state[1])
            changes.append(configure(optimizer, schedule, wanted))
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return optimizer, schedule

    changes: list[list[str]] = []
    old, new = Optimization(lr=1e-3, schedule="poly"), Optimization(lr=1e-4, schedule="poly", weight_decay=0.2)
    for options in (old, new):
        state = [part.state_dict() for part in trained(old, 7)]
        optimizer, schedule = trained(options, 3, state)
        whole, whole_schedule = trained(options, 10)
        of = ("name", "lr", "initial_lr", "weight_decay")
        assert [[g[k] for k in of] for g in optimizer.param_groups] == [[g[k] for k in of] for g in whole.param_groups]
        assert schedule.get_last_lr() == whole_schedule.get_last_lr()
    assert changes[0] == []
    assert "lr of head_x1_decay0.2 0.0001, was 0.001" in changes[1]
    assert "weight decay of head_x1_decay0.2 0.2, was 0.05" in changes[1]


def decayed_officially(model):
    """Names of what the official code's loop over modules leaves its weight decay; the model is transformers'."""
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    return {
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if not isinstance(module, (*norms, nn.Embedding)) and "relative_position_bias_table" not in name
    }


def test_decay_as_in_the_official_code(mask2former_pair):
    theirs, ours = mask2former_pair.theirs, mask2former_pair.make_ours()
    source = translate(theirs.state_dict(), HUGGING_FACE).source
    decayed = decayed_officially(theirs)
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    wanted = {name for name in trained if decayed & set(source[name])}
    of = {id(p): g for g in parameter_groups(ours, Optimization(decayed="official")) for p in g["params"]}
    assert {name for name, p in trained.items() if of[id(p)]["weight_decay"]} == wanted
    of = {id(p): g for g in parameter_groups(ours, Optimization()) for p in g["params"]}
    less = wanted - {name for name, p in trained.items() if of[id(p)]["weight_decay"]}
    assert less == {name for name in wanted if name.endswith(".bias")} | {"pixel_decoder.level_embed.weight"}


def test_parts_are_frozen_by_name():
    network = _Network()
    freeze(network, ["backbone.*", "queries.weight"])
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert sum(len(group["params"]) for group in parameter_groups(network, Optimization())) == 2
    with pytest.raises(UserError, match=r"no parameter is called 'bakbone.*the network has backbone\.\*, head\.\*"):
        freeze(network, ["bakbone.*"])
    with pytest.raises(UserError, match="nothing to train"):
        freeze(network, ["*"])
