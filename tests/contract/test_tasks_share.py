"""Owners of one queue take turns, and a lower priority gets its turns too, in the end."""

from uuid import uuid4

import pytest

PASS = 1000
"""Turns that a priority is worth, as tasks.lua has it."""


@pytest.fixture
def claim(store):
    """await claim(3): the prompts of the next three, which have succeeded."""

    async def claim_some(limit=1):
        claims = await store.claim("sd", "w", limit=limit, request_id=uuid4().hex)
        for claimed in claims:
            await store.succeed(claimed.claim, [])
        return "".join(claimed.task.input["prompt"] for claimed in claims)

    return claim_some


async def test_one_owners_many_tasks_are_in_nobodys_way(submit, claim):
    for _ in range(50):
        await submit("a", owner="ann")
    await submit("b", owner="bob")
    assert await claim(3) == "aba"


async def test_owners_who_always_wait_get_the_same_share(submit, claim):
    for prompt, count in (("a", 30), ("b", 12), ("c", 9)):
        for _ in range(count):
            await submit(prompt, owner=prompt)
    order = await claim(100)
    assert order[:27] == "abc" * 9
    assert order[27:] == "ab" * 3 + "a" * 18


async def test_nobody_saves_up_turns_or_is_held_to_those_taken_while_alone(submit, claim):
    for _ in range(20):
        await submit("a", owner="ann")
    assert await claim(10) == "a" * 10
    for _ in range(10):
        await submit("b", owner="bob")
    assert sorted(await claim(10)) == list("aaaaabbbbb")
    await claim(100)
    for prompt in "ab" * 5:
        await submit(prompt, owner={"a": "ann", "b": "bob"}[prompt])
    assert (await claim(10)).count("a") == 5


async def test_an_owner_who_comes_again_and_again_takes_turns_with_one_who_waits(submit, claim):
    for _ in range(20):
        await submit("b", owner="bob")
    order = ""
    for _ in range(10):
        await submit("a", owner="ann")
        order += await claim(2)
    assert order.count("a") == 10
    order = ""
    for _ in range(8):
        await submit("a", owner="ann")
        order += await claim(1)
    assert order.count("b") == 4


async def test_canceled_tasks_take_no_turn_and_what_is_handed_back_returns_it(
    store, submit, claim, take
):
    canceled = [await submit("a", owner="ann") for _ in range(20)]
    for task in canceled[1:]:
        await store.cancel(task.id)
    for prompt in "bbbbba":
        await submit(prompt, owner={"a": "ann", "b": "bob"}[prompt])
    claims = await take(3)
    assert [claimed.task.input["prompt"] for claimed in claims] == ["a", "b", "a"]
    for claimed in claims:
        await store.release(claimed.claim)
    assert await claim(6) == "ababbb"


async def test_turns_are_taken_within_a_priority(submit, claim):
    for prompt, owner, priority in (("a", "ann", 1), ("A", "ann", 1), ("b", "bob", 0)):
        await submit(prompt, owner=owner, priority=priority)
    assert await claim(3) == "aAb"


async def test_a_lower_priority_is_passed_by_many_but_not_for_ever(submit, claim):
    for _ in range(20):
        await submit("low")
    passed = []
    for _ in range(PASS + 10):
        await submit("high", priority=1)
        passed.append(await claim(1))
    assert PASS - 10 <= passed.index("low") <= PASS + 2
    assert 4 <= passed[-10:].count("low") <= 6
    await submit("higher", priority=2)
    assert await claim(1) == "higher"


async def test_positions_follow_the_turns(store, submit, claim):
    tasks = {}
    for n, (owner, priority) in enumerate(
        [("ann", 0)] * 7 + [("bob", 0)] * 3 + [("eve", 1)] * 2 + [("bob", 1)] + [("ann", 0)]
    ):
        tasks[chr(97 + n)] = await submit(chr(97 + n), owner=owner, priority=priority)
    await store.move_to_front(tasks["c"].id)
    await claim(3)
    places = {}
    for prompt, task in tasks.items():
        if position := await store.position(task.id):
            places[position.ahead] = prompt
    assert "".join(places[n] for n in range(len(tasks) - 3)) == await claim(100)


async def test_what_an_older_release_queued_is_claimed_in_its_order(
    store, submit, claim, redis, key_prefix
):
    for prompt, priority in (("a", 0), ("b", 0), ("c", 1)):
        await submit(prompt, priority=priority)
    prefix = f"{{{key_prefix}}}:"
    for name in ("share:sd", "turn:sd", "line:sd:0:ann", "line:sd:1:ann"):
        await redis.delete(prefix + name)
    await submit("d")
    assert sorted([await claim(1) for _ in range(4)]) == ["a", "b", "c", "d"]
    assert (await store.depth("sd")).queued == 0


async def test_nothing_is_left_of_a_queue_that_was_worked_off(
    store, submit, claim, redis, key_prefix
):
    for n in range(20):
        await submit("a", owner=f"owner {n % 3}", priority=n % 2)
    await claim(100)
    for _ in range(3):  # the latest turns are forgotten as others are taken
        await submit("a")
        await claim(1)
    prefix = f"{{{key_prefix}}}:"
    assert not await redis.keys(prefix + "line:*")
    assert not await redis.exists(prefix + "share:sd")
    assert await redis.zcard(prefix + "spent:sd") <= 1
