"""Numbers of jobs and quotas of calls, on a real store."""

import asyncio
import uuid

import pytest

from deployments.tasks.account import MAX_NUMBER
from deployments.tasks.errors import TaskNotFound


@pytest.fixture
def accounts(store):
    return store.accounts


async def numbered(accounts, owner="ann", **about):
    return await accounts.number(str(uuid.uuid4()), owner, about)


async def test_jobs_are_counted_and_found_by_their_owner_alone(accounts, open_store):
    task = str(uuid.uuid4())
    first = await accounts.number(task, "ann", {"states": ["人像"]})
    assert await numbered(accounts, "bob") == first + 1
    for each in (accounts, open_store().accounts):  # as after a restart
        job = await each.job(first, "ann")
        assert (job.task_id, job.about) == (task, {"states": ["人像"]})
        with pytest.raises(TaskNotFound):
            await each.job(first, "bob")
    with pytest.raises(TaskNotFound):
        await accounts.job(first + 2, "ann")


async def test_a_task_keeps_its_number(accounts):
    task = str(uuid.uuid4())
    first = await accounts.number(task, "ann", {"a": 1})
    assert await accounts.number(task, "ann", {"a": 2}) == first
    assert (await accounts.job(first, "ann")).about == {"a": 1}


async def test_after_the_largest_32_bit_number_the_free_ones_are_given_again(
    accounts, redis, key_prefix
):
    assert await numbered(accounts) == 1
    await redis.set(f"{{{key_prefix}}}:job:next", MAX_NUMBER - 1)
    assert [await numbered(accounts) for _ in range(2)] == [MAX_NUMBER, 2]


async def test_a_number_outlives_its_task_s_record_and_is_renewed_when_asked_for(
    accounts, redis, key_prefix
):
    number = await numbered(accounts)
    key = f"{{{key_prefix}}}:job:{number}"
    assert await redis.ttl(key) > 7 * 86400
    await redis.expire(key, 60)
    await accounts.job(number, "ann")
    assert await redis.ttl(key) > 7 * 86400


async def test_no_more_calls_are_counted_than_there_are(accounts):
    found = await asyncio.gather(*(accounts.use("ann", 5) for _ in range(12)))
    assert sum(found) == 5
    assert await accounts.use("bob", 5)
    await accounts.give_back("ann")
    assert [await accounts.use("ann", 5) for _ in range(2)] == [True, False]
    assert await accounts.use("ann", 6)


async def test_a_call_whose_reply_is_lost_is_counted_once(lossy, open_store):
    accounts = open_store(lossy.url).accounts
    assert await accounts.use("bob", 1)  # now the server has the script
    lossy.lose_replies("use")
    assert await accounts.use("ann", 1)
    assert not await accounts.use("ann", 1)
    lossy.lose_replies("give_back")
    await accounts.give_back("ann")
    assert [await accounts.use("ann", 1) for _ in range(2)] == [True, False]
    lossy.lose_replies("number")
    assert await numbered(accounts) == 1
    assert await numbered(accounts) == 2
