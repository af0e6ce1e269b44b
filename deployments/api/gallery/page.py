"""Lists by page number, and the filters that all of them know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError

T = TypeVar("T")

MAX_PAGE = 200
MAX_OFFSET = 10_000
"""Objects before a page; each is passed by one after another."""
MAX_SCANNED = 20_000
"""Objects that one call looks at; what a filter leaves out counts as well."""
_FILTERS = frozenset({"page", "pageSize", "user", "user_id", "tag"})

Words = Annotated[list[str] | None, Query(max_length=20)]


@dataclass(frozen=True)
class Wanted:
    """Which objects of a list, and which page of them."""

    page: int
    size: int
    users: tuple[frozenset[str], ...]
    tags: tuple[frozenset[str], ...]

    def fits(self, user: str, tags: Iterable[str]) -> bool:
        """Within one value, commas are a union; values given again are an intersection."""
        own = {tag.casefold() for tag in tags}
        return all(user in each for each in self.users) and all(each & own for each in self.tags)


def wanted(
    request: Request,
    page: Annotated[int, Query(ge=1, description="From 1.")] = 1,
    page_size: Annotated[
        int, Query(alias="pageSize", ge=1, le=MAX_PAGE, description="Objects a page.")
    ] = 20,
    user: Words = None,
    user_id: Words = None,
    tag: Words = None,
) -> Wanted:
    """`user` and `user_id` are the same; several values with commas are a union, several
    parameters an intersection."""
    if (page - 1) * page_size > MAX_OFFSET:
        limit = f"(page - 1) x pageSize must be at most {MAX_OFFSET}"
        raise _refused("page", "value_error", limit, (page - 1) * page_size)
    tags = tuple(_union(each.casefold()) for each in tag or ())
    return Wanted(page, page_size, tuple(map(_union, [*(user or ()), *(user_id or ())])), tags)


WantedDep = Annotated[Wanted, Depends(wanted)]


def no_other_filters(request: Request, *known: str) -> None:
    """Raises RequestValidationError for a query that this list would not heed."""
    for name in request.query_params:
        if name not in _FILTERS and name not in known:
            raise _refused(name, "extra_forbidden", "", request.query_params[name])


async def paged(
    objects: AsyncIterator[T], chosen: Wanted, keep: Callable[[T], bool]
) -> tuple[list[T], bool]:
    """The page's objects, and whether there are more."""
    left, found, scanned = (chosen.page - 1) * chosen.size, list[T](), 0
    async for each in objects:
        scanned += 1
        if scanned > MAX_SCANNED:
            break
        if not keep(each):
            continue
        if left:
            left -= 1
        elif len(found) == chosen.size:
            return found, True
        else:
            found.append(each)
    return found, False


def _union(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(","))


def _refused(name: str, kind: str, message: str, given: Any) -> RequestValidationError:
    return RequestValidationError(
        [{"type": kind, "loc": ("query", name), "msg": message, "input": given}]
    )
