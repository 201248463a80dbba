"""Sets in shares: every block once, and the same bytes as a set made in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.engine.plan_queue import plan_queue
from pipelines.engine.shards import Share, delete_blocks, download_blocks, share_out, upload_blocks
from pipelines.grid.expand import Expansion
from pipelines.grid.plan import Item, Plan
from pipelines.grid.queue import Demand, RecipeQueue
from rd3.methods import METHODS
from rd3.recipe import SetRecipe
from rd3.synthesis import synthesize
from rd3.testing import ToyDataset, toy_teacher, trial_recipe
from tracking.ledger.object_store import FolderObjects

TOY = ToyDataset()
RECIPE = trial_recipe("sre2l", TOY, 3, batch_classes=2)


def test_shares_hold_every_block_once():
    blocks = METHODS.get("sre2l")().blocks(RECIPE, TOY.info)
    [shares] = share_out([RECIPE], 4, lambda name: TOY.info).values()
    held = [index for share in shares for index in range(*share.blocks[:1], len(blocks), share.blocks[1])]
    assert sorted(held) == [block.index for block in blocks]
    assert len({share.key for share in shares}) == 4
    assert all(share.parents() == RECIPE.parents() for share in shares)


@pytest.mark.parametrize(
    "recipe",
    [trial_recipe("random", TOY, 1), RECIPE.model_copy(update={"content": "ab", "method": "imported"})],
    ids=["one block", "imported"],
)
def test_what_cannot_be_shared_out_is_not(recipe: SetRecipe):
    assert share_out([recipe], 4, lambda name: TOY.info) == {}


def test_a_set_that_was_finished_since_the_plan_is_not_shared_out():
    expansion = Expansion(recipes={RECIPE.key: RECIPE}, infos={TOY.info.name: TOY.info})
    plan = Plan("", [Item(RECIPE.key, "set", "toy", "run")])
    sides = dict.fromkeys(("set", "share"), Demand(1.0))
    assert plan_queue(expansion, plan, (), sides, 4).counts()["share"]["waiting"] == 4
    assert plan_queue(expansion, plan, {RECIPE.key}, sides, 4).counts().keys() == {"set"}


def test_a_set_in_shares_is_the_set_made_in_one_go(tmp_path: Path):
    teachers, objects = (toy_teacher(TOY),), FolderObjects(tmp_path / "root")
    [shares] = share_out([RECIPE], 3, lambda name: TOY.info).values()
    blocks = METHODS.get("sre2l")().blocks(RECIPE, TOY.info)
    for share in reversed(shares):
        folder = tmp_path / share.key
        first, step = share.blocks
        chosen = [block.index for block in blocks[first::step]]
        assert synthesize(RECIPE, TOY, teachers, folder, only_blocks=chosen) is None
        upload_blocks(objects, RECIPE.key, folder)
    download_blocks(objects, RECIPE.key, tmp_path / "second", shares[1].blocks)
    assert sorted(int(path.stem) for path in (tmp_path / "second").rglob("*.safetensors")) == [
        block.index for block in blocks[1::3]
    ]
    download_blocks(objects, RECIPE.key, tmp_path / "whole")
    together = synthesize(RECIPE, TOY, (_refuses(),), tmp_path / "whole")
    alone = synthesize(RECIPE, TOY, teachers, tmp_path / "alone")
    assert together.content == alone.content
    delete_blocks(objects, RECIPE.key)
    assert not list(objects.names())


def _refuses():
    """A teacher that must not be asked: all blocks are there."""
    teacher = toy_teacher(TOY)
    teacher.network.register_forward_pre_hook(lambda *_: pytest.fail("a block was made again"))
    return teacher


def test_a_set_waits_for_its_shares_and_for_the_larger_one_even_if_these_fail():
    shares = share_out([RECIPE], 2, lambda name: TOY.info)[RECIPE.key]
    small = RECIPE.model_copy(update={"ipc": 1})
    demands = dict.fromkeys(("set", "share"), Demand(1.0))
    queue = RecipeQueue(
        {recipe.key: recipe for recipe in (RECIPE, small, *shares)},
        demands=demands,
        after={RECIPE.key: [share.key for share in shares], small.key: [RECIPE.key]},
    )
    first, second = queue.take(8), queue.take(8)
    assert [type(first), type(second), queue.take(8)] == [Share, Share, None]
    queue.finish(first.key)
    assert queue.take(8) is None
    queue.close(second.key, "failed", "no disk")
    assert queue.take(8) is RECIPE
    queue.close(RECIPE.key, "failed", "no disk")
    assert queue.take(8) is small
    queue.finish(small.key)
    assert queue.finished
