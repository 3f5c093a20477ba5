"""Blocking work in threads of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_threads(threads: ThreadPoolExecutor, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """The result of `work`, done in one of `threads`.

    `asyncio.to_thread` shares the few threads that Ray gives a replica. Work that may take long fills them, and health
    checks then wait for it.
    """
    context = contextvars.copy_context()  # Serve's log takes the id of the request from it
    call = partial(context.run, partial(work, *arguments, **options))
    return await asyncio.get_running_loop().run_in_executor(threads, call)
