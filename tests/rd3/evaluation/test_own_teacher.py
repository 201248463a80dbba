"""A user's network as teacher of ``rd3.evaluate``: fed as it was trained, tested once, refused in one sentence."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rd3.errors import BadValue, ClassOrderError
from rd3.evaluation import posteval
from rd3.evaluation.own_teacher import identity, own_teacher
from rd3.known_constants import KNOWN
from rd3.models import NormalisedNetwork
from rd3.recipe import Normalisation

UNIT = KNOWN["none"]


def checked(network, data, normalisation=None, *, allow_chance=False, notes=None):
    notes = [] if notes is None else notes
    return own_teacher(
        network, data, normalisation, allow_chance=allow_chance, device="cpu",
        progress=lambda fraction, note: notes.append((fraction, note)),
    )  # fmt: skip


def test_a_network_of_pixels_in_the_unit_range_is_used_as_it_is(colours):
    data, notes = colours(), []
    network = data.network(UNIT).train()
    fed = checked(network, data, notes=notes)
    pixels = torch.rand(5, 3, 32, 32)
    assert torch.equal(fed(pixels), network(pixels))
    assert network.training and network.fc.weight.requires_grad  # not modified
    expected = f"teacher: {data.top1_pct('validation', UNIT, UNIT):.1f} % of 80 validation images, on pixels in [0, 1]"
    assert notes == [(0.0, expected)]


@pytest.mark.parametrize("stated", ["imagenet", KNOWN["imagenet"], "0.485,0.456,0.406/0.229,0.224,0.225"])
def test_a_network_of_normalised_pixels_needs_its_constants(stated, colours):
    data = colours()
    network = data.network(KNOWN["imagenet"])
    with pytest.raises(BadValue, match="seems to expect normalised pixels") as caught:
        checked(network, data)
    assert "normalisation='none'" in caught.value.fix
    named = re.match(r"pass normalisation='([^']+)'", caught.value.fix)
    checked(network, data, named[1])
    fed = checked(network, data, stated)
    pixels = torch.rand(5, 3, 32, 32)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (KNOWN["imagenet"].mean, KNOWN["imagenet"].std))
    torch.testing.assert_close(fed(pixels), network((pixels - mean) / std))
    with pytest.warns(UserWarning, match="with none"):  # stated, and doubted
        checked(network, data, "none", allow_chance=True)


def test_a_network_for_bgr_is_refused_and_the_fix_works(colours):
    data = colours()
    teacher = data.network(UNIT)
    teacher.fc.weight.data = teacher.fc.weight.data.flip(1)
    with pytest.raises(
        BadValue, match="seems to expect pixels in the order BGR: with the channels in the order BGR"
    ) as e:
        checked(teacher, data)
    statement, named = re.search(r"channels, (.*), and pass normalisation='(\w+)'", e.value.fix).groups()
    exec(statement, {"teacher": teacher})
    assert torch.equal(teacher.fc.weight, data.network(UNIT).fc.weight)
    checked(teacher, data, named)


def test_a_pair_of_constants_is_taken(colours):
    data = colours()
    fed = checked(data.network(KNOWN["half"]), data, ([0.5] * 3, (0.5, 0.5, 0.5)))
    assert fed.normalisation == KNOWN["half"]
    for wrong in (3, (0.5,), [[0.1, 0.2], 3], object()):
        with pytest.raises(BadValue, match=r"normalisation is|Cannot read"):
            checked(data.network(UNIT), data, wrong)


def test_permuted_classes_are_refused_with_the_rows_to_take(colours):
    data = colours()
    network, order = data.network(UNIT), [2, 0, 3, 1]
    permuted = copy.deepcopy(network)
    with torch.no_grad():
        permuted.fc.weight[order], permuted.fc.bias[order] = network.fc.weight.clone(), network.fc.bias.clone()
    with pytest.raises(ClassOrderError, match="look permuted") as caught:
        checked(permuted, data)
    rows = [int(row) for row in re.search(r"weight\[\[([\d, ]+)\]\]", caught.value.fix)[1].split(",")]
    assert rows == order
    permuted.fc.weight.data, permuted.fc.bias.data = permuted.fc.weight[rows].detach(), permuted.fc.bias[rows].detach()
    checked(permuted, data)


def test_chance_is_refused_unless_allowed(colours):
    data = colours()
    network = data.network(UNIT)
    nn.init.zeros_(network.fc.weight)
    with pytest.raises(BadValue, match="does not know the classes") as caught:
        checked(network, data, "none")
    assert "allow_chance=True" in caught.value.fix
    checked(network, data, "none", allow_chance=True)


def test_probabilities_are_refused_and_doubted(colours):
    data = colours()
    network = data.network(UNIT)
    with pytest.raises(BadValue, match="returns probabilities, expected logits") as caught:
        checked(nn.Sequential(network, nn.Softmax(dim=1)), data, "none")
    assert caught.value.fix == "leave out its softmax"
    with pytest.warns(UserWarning, match=r"only values in \[0, 1\]"):
        checked(nn.Sequential(network, nn.Sigmoid()), data, "none", allow_chance=True)
    checked(nn.Sequential(network, nn.LogSoftmax(dim=1)), data, "none")


class Wraps(nn.Module):
    """Returns the logits in something else, or fails."""

    def __init__(self, network, how):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, pixels):
        return self.how(self.network(pixels))


def _broken(_logits):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nsecond line")


def test_what_returns_no_logits_is_one_sentence(colours):
    data = colours()
    network = data.network(UNIT)
    nan = copy.deepcopy(network)
    nan.fc.bias.data[1] = torch.nan
    locked = copy.deepcopy(network)
    locked.extra = (value for value in [1])
    for wrong, message in (
        ("resnet18.pth", "is of type str"),
        (network.forward, "is of type method"),
        (Wraps(network, lambda logits: SimpleNamespace(logits=logits)), "returns type SimpleNamespace"),
        (Wraps(network, lambda logits: logits[:, :, None]), r"returns shape \(32, 4, 1\)"),
        (Wraps(network, lambda logits: logits[:, :3]), "has 3 classes, colours has 4"),
        (Wraps(network, _broken), "fails on pixels of shape .* RuntimeError: mat1 and mat2"),
        (nan, "1 of 4 values of fc.bias"),
        (locked, "cannot be copied"),
    ):
        with pytest.raises(BadValue, match=message) as caught:
            checked(wrong, data)
        assert "\n" not in str(caught.value)
        assert caught.value.fix


def test_other_precisions_and_networks_without_parameters_are_taken(colours):
    data = colours()
    network = data.network(UNIT)
    for other in (network.half(), data.network(UNIT).double(), data.network(UNIT).bfloat16()):
        assert checked(other, data).fc.weight.dtype == torch.float32

    class Bare(nn.Module):
        def forward(self, pixels):
            return data.network(UNIT)(pixels)

    options = {"student": "convnet_d1", "epochs": 1, "precision": "fp32", "batch_size": 4}
    images, labels = data.images("train", range(8)), torch.from_numpy(data.labels("train")[:8])
    assert posteval.evaluate(images, labels, data, Bare(), **options).final_loss >= 0


def test_evaluate_feeds_the_teacher_as_stated(colours):
    """The same soft labels from a bare network with its constants as from one that normalises itself."""
    data = colours()
    images, labels = data.images("train", range(8)), torch.from_numpy(data.labels("train")[:8])
    options = {"student": "convnet_d1", "epochs": 1, "precision": "fp32", "batch_size": 4}
    bare = data.network(KNOWN["imagenet"])
    with pytest.raises(BadValue, match="seems to expect normalised pixels"):
        posteval.evaluate(images, labels, data, bare, **options)
    stated = posteval.evaluate(images, labels, data, bare, normalisation="imagenet", **options)
    own = posteval.evaluate(images, labels, data, NormalisedNetwork(bare, KNOWN["imagenet"]), **options)
    assert (stated.final_loss, stated.top1_pct) == (own.final_loss, own.top1_pct)


def test_warnings_are_at_the_line_that_calls_evaluate(colours):
    data = colours()
    images, labels = data.images("train", range(8)), torch.from_numpy(data.labels("train")[:8])
    options = {"student": "convnet_d1", "epochs": 1, "precision": "fp32", "batch_size": 4, "normalisation": "none"}
    network, unit = data.network(KNOWN["imagenet"]), Wraps(data.network(UNIT), lambda logits: (logits / 500).sigmoid())
    with pytest.warns(UserWarning, match="may need another input") as caught:
        posteval.evaluate(images, labels, data, network, **options, allow_chance=True)
    with pytest.warns(UserWarning, match=r"only values in \[0, 1\]") as again:
        posteval.evaluate(images, labels, data, unit, **options, allow_chance=True)
    own = [one for one in (*caught, *again) if "The teacher" in str(one.message)]
    assert len(own) >= 2 and {one.filename for one in own} == {__file__}


def test_constants_are_part_of_the_identity_where_they_are_stated(colours):
    data = colours()
    plain, other = data.network(UNIT), Normalisation(mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0))
    assert len(identity(plain, None)) == 2
    assert len(identity(NormalisedNetwork(plain, other), "0.1/1")) == 4
    assert len(identity(NormalisedNetwork(plain, other), None)) == 2  # keys of RD3's own teachers stay


class Trained(nn.Module):
    """The nearest colour behind a batch norm of batch statistics in train mode, a dropout, or both."""

    def __init__(self, network, norm=True, rate=0.3):
        super().__init__()
        self.network, self.drop = network, nn.Dropout(rate)
        self.norm = nn.BatchNorm2d(3, affine=False) if norm else nn.Identity()

    def forward(self, pixels):
        return self.drop(self.network(self.norm(pixels) if self.training else pixels))


class InAList(nn.Module):
    """Holds a network where ``.eval()`` does not reach it."""

    def __init__(self, network):
        super().__init__()
        self.held = [network]

    def forward(self, pixels):
        return self.held[0](pixels)


class InAFunction(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.call = lambda pixels: network(pixels)

    def forward(self, pixels):
        return self.call(pixels)


class AlwaysTrains(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def train(self, mode=True):
        self.network.train()
        return self

    def forward(self, pixels):
        return self.network(pixels)


@pytest.mark.parametrize("holds", [InAList, InAFunction, AlwaysTrains])
@pytest.mark.parametrize(
    ("norm", "rate", "cause"), [(True, 0.0, "batch norms"), (False, 0.3, "dropout"), (True, 0.3, "dropout")]
)
def test_a_part_that_eval_does_not_reach_is_refused(holds, norm, rate, cause, colours):
    data = colours()
    inner = Trained(data.network(UNIT), norm, rate).train()
    before, state = {name: value.clone() for name, value in inner.state_dict().items()}, torch.get_rng_state()
    message = rf"the likely cause is {cause} in train mode, which .eval\(\) does not reach"
    for _again in range(2):
        with pytest.raises(BadValue, match=message) as caught:
            checked(holds(inner), data, "none", allow_chance=True)
        assert ".eval() on every network" in caught.value.fix
    assert inner.training and inner.drop.training
    assert all(torch.equal(before[name], value) for name, value in inner.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    pixels = torch.rand(5, 3, 32, 32)
    fed = checked(inner if holds is AlwaysTrains else holds(inner.eval()), data, "none")  # as the fix says
    assert torch.equal(fed(pixels), data.network(UNIT)(pixels))


@pytest.mark.parametrize(
    "noise",
    [
        lambda logits: nn.functional.dropout(logits, 0.1, training=True),
        lambda logits: logits * (1 + (torch.rand(()) < 0.5)),  # of a whole batch
        lambda logits: logits * (1 + 0.03 * torch.randn_like(logits)),
    ],
)
def test_logits_that_are_drawn_are_refused_with_any_seed(noise, colours):
    data = colours()
    for seed in range(3):
        torch.manual_seed(seed)
        with pytest.raises(BadValue, match=r"each time, by up to .* the likely cause is dropout that is always on"):
            checked(Wraps(data.network(UNIT).eval(), noise), data, "none")


def test_batch_statistics_are_refused_unless_the_protocol_wants_them(colours):
    data = colours()
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    network = nn.Sequential(data.network(UNIT), norm)
    with pytest.raises(BadValue, match=r"others are in the batch.* batch norms without running statistics") as caught:
        checked(network, data, "none", allow_chance=True)
    assert "teacher_mode 'batch'" in caught.value.fix
    images, labels = data.images("train", range(8)), torch.from_numpy(data.labels("train")[:8])
    options = {"student": "convnet_d1", "epochs": 1, "precision": "fp32", "batch_size": 4, "allow_chance": True}
    with pytest.raises(BadValue, match="others are in the batch"):
        posteval.evaluate(images, labels, data, network, normalisation="none", **options)
    taken = posteval.evaluate(
        images, labels, data, network, normalisation="none", **options, teacher_mode="batch", soft_labels="online"
    )
    assert taken.final_loss >= 0


def test_rounding_is_not_taken_for_dropout(colours):
    """Half precision inside, and an error of one unit in the last place of it that differs each time."""
    data = colours()
    network = data.network(UNIT)
    checked(Wraps(network, lambda logits: logits.bfloat16().float()), data, "none")
    checked(Wraps(network, lambda logits: logits + logits.abs().max() * 2**-9 * torch.rand(logits.shape)), data, "none")
