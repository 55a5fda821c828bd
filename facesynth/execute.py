"""Runs work ahead in threads, and a worker over shards: in this process, or in several (see `Engine` for its contract)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, Self, TypeVar

from facesynth import console
from facesynth.console import FacesynthError

RETRIES = 1
SHARDS_AHEAD = 2
"""Shards submitted per process beyond the one it works on: enough to never wait, few enough to stop fast."""


class HasIndex(Protocol):
    """What an engine needs to know of a shard."""

    @property
    def index(self) -> int:
        """Number of the shard, for messages."""


S = TypeVar("S", bound=HasIndex)
Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(work: Callable[[Item], Result], items: Iterable[Item], threads: int, depth: int) -> Iterator[Result]:
    """`map` in threads that run at most `depth` items ahead of their consumer, so that memory stays flat."""
    with ThreadPoolExecutor(threads) as pool:
        futures: deque[Future[Result]] = deque()
        for item in items:
            futures.append(pool.submit(work, item))
            if len(futures) > depth:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


@dataclass(frozen=True)
class Outcome(Generic[S]):
    """What became of a shard: done, or the sentence that says why not."""

    shard: S
    error: str | None = None


def default_workers(device: str) -> int:
    """One process per core on a CPU, at most four (each holds its own networks); one on a GPU."""
    return min(os.cpu_count() or 1, 4) if device == "cpu" else 1


class Engine(Generic[S]):
    """Maps a worker over shards, in this process or in several. To be used in a `with` statement.

    `make_worker` is called once per process, and must be picklable where `workers` > 1. A worker gets one shard and leaves
    its result on disk; a shard done twice must leave the same bytes. An exception is a value here: the shard is tried once
    more, then reported as failed, and the others go on. A FacesynthError (a full disk, say) is not tried again. An engine
    for a cluster needs nothing but the contract of `run`.
    """

    def __init__(self, make_worker: Callable[[], Callable[[S], None]], workers: int) -> None:
        self._make_worker, self._workers = make_worker, workers
        self._worker: Callable[[S], None] | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, shards: Sequence[S]) -> Iterator[Outcome[S]]:
        """Work on every shard, yielding an Outcome as each ends, in any order. Processes live on for the next call."""
        if self._workers <= 1:
            yield from self._run_here(shards)
        else:
            yield from self._run_in_processes(shards)

    def _run_here(self, shards: Sequence[S]) -> Iterator[Outcome[S]]:
        for shard in shards:
            self._worker = self._worker or self._make_worker()
            yield Outcome(shard, _attempt(self._worker, shard))

    def _run_in_processes(self, shards: Sequence[S]) -> Iterator[Outcome[S]]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, _begin, (self._make_worker,))
        waiting, running = iter(shards), dict[Future[str | None], S]()
        for shard in islice(waiting, self._workers * SHARDS_AHEAD):
            running[self._pool.submit(_work, shard)] = shard
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield Outcome(running.pop(future), future.result())
                    for shard in islice(waiting, 1):
                        running[self._pool.submit(_work, shard)] = shard
        except BrokenProcessPool as error:
            raise FacesynthError(
                "a worker process ended unexpectedly (out of memory, or killed); everything finished is kept: go on with "
                "--on-existing resume, perhaps with fewer --workers or a smaller --batch-size."
            ) from error


def _attempt(worker: Callable[[S], None], shard: S) -> str | None:
    error: Exception | None = None
    for _ in range(1 + RETRIES):
        try:
            worker(shard)
            return None
        except FacesynthError as final:
            return str(final)
        except Exception as unexpected:
            if os.environ.get("FACESYNTH_DEBUG") == "1":
                raise
            error = unexpected
    return f"shard {shard.index}: {type(error).__name__}: {error}"


_worker: Callable[..., None] | None = None


def _begin(make_worker: Callable[[], Callable[..., None]]) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    console.set_quiet(True)  # what there is to say, the parent has said
    _worker = make_worker()


def _end_with_parent() -> None:
    # Where the parent is killed, nobody else tells its workers; one that went on would write beside the run that resumes.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(shard: HasIndex) -> str | None:
    assert _worker is not None
    return _attempt(_worker, shard)
