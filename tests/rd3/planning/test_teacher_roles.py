"""Roles: every shipped row is a recipe, users' rows win, and any network is a role."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rd3.datasets import dataset_info, dataset_names
from rd3.errors import BadValue, UnknownName
from rd3.models import network_info
from rd3.planning.backbones import backbone_recipe, backbone_role
from rd3.planning.teacher_roles import every_role, teacher_recipe, teacher_role

FINGERPRINT = "0" * 64


@pytest.mark.parametrize("dataset", dataset_names())
def test_every_dataset_has_a_resnet_of_its_own_resolution(dataset):
    info = dataset_info(dataset)
    assert any(name.startswith("resnet18") for name in every_role(info))
    for name in {*every_role(info), "resnet18", "convnet", "timm:vit_tiny_patch16_224"}:
        role = teacher_role(info, name)
        recipe = teacher_recipe(role, info, FINGERPRINT)
        assert info.resolution in network_info(role.network).resolutions
        assert (recipe.training is None) == bool(role.hint)
        assert recipe.network == role.network
        assert recipe.classes == info.classes
        assert role.source


def test_published_settings_of_the_cifar_squeeze():
    role = teacher_role(dataset_info("cifar100"), "resnet18")
    training = teacher_recipe(role, dataset_info("cifar100"), FINGERPRINT).training
    assert not role.nearest
    assert (training.epochs, training.batch_size, training.lr) == (200, 128, 0.1)
    assert (training.momentum, training.nesterov, training.weight_decay) == (0.9, False, 5e-4)
    assert (training.crop, training.flip, training.warmup_epochs) == ("pad", True, 0)


def test_a_users_dataset_takes_the_nearest_training():
    info = dataset_info("imagenette").model_copy(update={"name": "mine"})
    role = teacher_role(info, "resnet50")
    assert role.nearest
    assert role.network == "resnet50"
    recipe = teacher_recipe(role, info, FINGERPRINT)
    assert (
        recipe.training
        == teacher_recipe(teacher_role(dataset_info("imagenette"), "resnet50"), info, FINGERPRINT).training
    )
    assert recipe.data.name == "mine"


def test_a_teacher_learns_from_the_part_that_the_grid_draws_from():
    role, info = teacher_role(dataset_info("digits"), "resnet18_w16"), dataset_info("digits")
    assert teacher_recipe(role, info, FINGERPRINT).data.split == "train"
    assert teacher_recipe(role, info, FINGERPRINT, "fit").data.split == "fit"


def test_a_teacher_that_the_user_named_wins():
    info = dataset_info("digits")
    mine = teacher_recipe(teacher_role(dataset_info("digits"), "convnet"), info, FINGERPRINT)
    named = mine.model_dump(mode="json")
    users = {("digits", "resnet18_w16"): named}
    role = teacher_role(dataset_info("digits"), "resnet18_w16", lambda *place: users.get(place))
    assert role.network == "convnet"
    assert not role.hint
    assert teacher_recipe(role, info, "1" * 64).key == mine.key
    assert teacher_role(dataset_info("digits"), "convnet", lambda *place: users.get(place)).registered is None


def test_a_role_of_the_other_kind_is_refused():
    info = dataset_info("digits")
    teacher = teacher_recipe(teacher_role(info, "convnet"), info, FINGERPRINT).model_dump(mode="json")
    backbone = backbone_recipe(backbone_role(info, "dit"), info, FINGERPRINT).model_dump(mode="json")
    with pytest.raises(BadValue, match="Role mine of digits is a backbone, not a teacher"):
        teacher_role(info, "mine", lambda dataset, role: backbone)
    with pytest.raises(BadValue, match="Role mine of digits is a teacher, not a backbone"):
        backbone_role(info, "mine", lambda dataset, role: teacher)


def test_a_family_of_roles_is_trained_as_its_authors_did():
    info = dataset_info("cifar10")
    recipe = teacher_recipe(teacher_role(info, "gvbsm-wrn_16_2"), info, FINGERPRINT)
    training = recipe.training
    assert (recipe.network, training.epochs, training.batch_size, training.lr) == ("wrn_16_2", 5, 64, 0.05)
    assert (training.momentum, training.weight_decay, training.zeta) == (0.9, 0.0, None)
    assert recipe.normalisation.mean == (0.5071, 0.4867, 0.4408)
    tiny = dataset_info("tinyimagenet")
    training = teacher_recipe(teacher_role(tiny, "gvbsm-convnet_in"), tiny, FINGERPRINT).training
    assert training.epochs * training.zeta == 50
    mine = dataset_info("cifar100").model_copy(update={"name": "mine"})
    assert teacher_role(mine, "gvbsm-resnet18").nearest
    with pytest.raises(UnknownName, match="no teacher 'gvbsm-resnet19'"):
        teacher_role(info, "gvbsm-resnet19")


def test_weights_that_nobody_imported_block():
    role = teacher_role(dataset_info("imagenet1k"), "resnet18")
    recipe = teacher_recipe(role, dataset_info("imagenet1k"), FINGERPRINT)
    assert recipe.training is None
    assert len(recipe.weights) != 64
    assert "torchvision:resnet18" in role.hint


def test_unknown_roles_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'resnet18-895'"):
        teacher_role(dataset_info("cifar10"), "resnet18-859")
    with pytest.raises(UnknownName, match="Dataset digits has no teacher 'any'"):
        teacher_role(dataset_info("digits"), "any")
    with pytest.raises(UnknownName) as caught:
        teacher_role(dataset_info("digits"), "zzzz")
    listed = caught.value.fix.removeprefix("use one of: ").removesuffix(".").split(", ")
    assert listed == sorted(set(listed)) and "resnet18_w16" in listed
    with pytest.raises(UnknownName, match="no teacher 'resnet18', as RD3 has none for 96 pixels"):
        teacher_role(dataset_info("digits").model_copy(update={"name": "mine", "resolution": 96}), "resnet18")


def test_roles_need_no_torch():
    code = (
        "import sys\n"
        "from rd3.datasets import dataset_info\n"
        "from rd3.planning.teacher_roles import every_role, teacher_recipe, teacher_role\n"
        "teacher_recipe(teacher_role(dataset_info('cifar10'), 'convnet'), dataset_info('cifar10'), '0')\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
