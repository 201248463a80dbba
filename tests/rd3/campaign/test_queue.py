"""The order of a campaign, without anything being made."""

from __future__ import annotations

from small_recipes import a_set, teacher

from rd3.campaign.queue import Queue


def nothing(_kind: str, _key: str) -> bool:
    return False


def ready(queue: Queue) -> list[str]:
    return [recipe.key for recipe in queue.ready()]


def test_parents_come_first_and_else_the_given_order():
    one = teacher()
    child, free, last = a_set(1, teachers=(one.key,)), a_set(2), a_set(3)
    queue = Queue([child, free, one, last], nothing)
    assert ready(queue) == [free.key, one.key, last.key]
    queue.start([one])
    queue.end(one.key, "done")
    assert ready(queue) == [child.key, free.key, last.key]


def test_what_is_in_the_store_is_not_made_again_and_serves_its_children():
    one = teacher()
    child = a_set(1, teachers=(one.key,))
    listed = Queue([one, child], lambda kind, key: (kind, key) == ("teacher", one.key))
    apart = Queue([child], lambda kind, key: (kind, key) == ("teacher", one.key))
    assert ready(listed) == ready(apart) == [child.key]
    assert listed.named(("there",)) == [one.key]


def test_a_missing_parent_blocks_all_that_is_made_from_it_in_any_order():
    one = teacher()
    child = a_set(1, teachers=(one.key,))
    grandchild = a_set(2, init=child.key)
    reason = f"its teacher {one.key[:12]} is neither in the store nor among the recipes"
    for order in ([child, grandchild], [grandchild, child]):
        queue = Queue(order, nothing)
        assert {queue.states[each.key].name for each in order} == {"blocked"}
        assert {queue.states[each.key].reason for each in order} == {reason}
        assert not queue.is_open()


def test_a_failure_blocks_its_descendants_with_its_reason_and_nothing_else():
    one = teacher()
    child, free = a_set(1, teachers=(one.key,)), a_set(2)
    grandchild = a_set(3, init=child.key)
    queue = Queue([one, child, grandchild, free], nothing)
    queue.start([one])
    queue.end(one.key, "diverged", "the loss is nan")
    for blocked in (child, grandchild):
        assert queue.states[blocked.key].name == "blocked"
        assert "diverged: the loss is nan" in queue.states[blocked.key].reason
    assert ready(queue) == [free.key]


def test_a_small_set_waits_for_the_larger_one_however_that_ends():
    small, large = a_set(ipc=1), a_set(ipc=5)
    for end in ("done", "failed"):
        queue = Queue([large, small], nothing, {small.key: large.key})
        assert ready(queue) == [large.key]
        queue.start([large])
        queue.end(large.key, end)
        assert ready(queue) == [small.key]


def test_what_is_tried_again_waits_for_all_others_and_has_the_machine_to_itself():
    first, second, third = (a_set(seed) for seed in range(3))
    queue = Queue([first, second, third], nothing)
    queue.start([first])
    queue.start([second])
    queue.again(first.key, "its process died")
    assert ready(queue) == [third.key], "others go first"
    queue.start([third])
    assert ready(queue) == [], "not beside others"
    queue.end(second.key, "done")
    queue.end(third.key, "done")
    assert ready(queue) == [first.key]
    queue.start([first])
    assert queue.states[first.key].alone and ready(queue) == [] and queue.is_open()
