"""The queue of a plan: its recipes, shares of large sets, and what is reused or blocked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pipelines.engine.shards import share_out
from pipelines.grid.queue import Demand, Queued, RecipeQueue, Unsuccessful
from rd3.recipe import KINDS, Key

if TYPE_CHECKING:
    from pipelines.grid.expand import Expansion
    from pipelines.grid.plan import Plan

_UNKNOWN = dict.fromkeys(KINDS, Demand(1.0))
"""One CPU each, where nothing is going to run."""


def plan_queue(
    expansion: Expansion,
    plan: Plan,
    finished: Collection[Key] = (),
    demands: Mapping[str, Demand] = _UNKNOWN,
    shares: int = 1,
) -> RecipeQueue:
    """The plan as a queue.

    ``finished``: results added to the ledger since the plan; ``demands``: resources of a trial by kind; ``shares``:
    number of trials that generate one set together.  A set that is the beginning of a larger one waits for it.
    """
    items = {item.key: item for item in plan.items if item.key is not None}
    recipes: dict[Key, Queued] = {key: recipe for key, recipe in expansion.recipes.items() if key in items}
    running = [
        expansion.recipes[key]
        for key, item in items.items()
        if item.status == "run" and key not in finished and key not in expansion.larger_sets
    ]
    shares_of = share_out(running, shares, expansion.infos.get) if shares > 1 else {}
    recipes |= {share.key: share for each in shares_of.values() for share in each}
    costs_s = {key: item.cost_s for key, item in items.items()}
    costs_s |= {share.key: costs_s[key] / len(each) for key, each in shares_of.items() for share in each}
    costs_s |= dict.fromkeys(shares_of, 0.0)  # only the shares remain to be assembled
    return RecipeQueue(
        recipes,
        reused=[key for key, item in items.items() if item.status == "reuse" or key in finished],
        unsuccessful={
            key: Unsuccessful("blocked", item.reason)
            for key, item in items.items()
            if item.status == "blocked" and key not in finished
        },
        demands=demands,
        after={key: [larger] for key, larger in expansion.larger_sets.items() if key in recipes}
        | {key: [share.key for share in each] for key, each in shares_of.items()},
        costs_s=costs_s,
    )
