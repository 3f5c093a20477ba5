"""The state of jobs, in SQLite and in a real PostgreSQL: nothing is lost, nothing is done twice."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import sqlite3
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from deployments.jobs import store as module
from deployments.jobs.store import LATER_COLUMNS, Claim, Job, JobStore, NewFile, WebhookState
from pipeline.errors import IdempotencyConflict, JobNotFound, Overloaded, RateExceeded, StoreUnavailable

LEASE_SECONDS = 30.0


def add(store: JobStore, job_id: str, *, owner: str = "", files: int = 1, **options: Any) -> Job:
    names = [NewFile(f"{i}.wav", 1_000 * (i + 1)) for i in range(files)]
    given: dict[str, Any] = {"fingerprint": job_id, "max_waiting": 100} | options
    return store.add(owner, names, {"explain": True}, job_id=job_id, **given)[0]


def claim(store: JobStore, lease_seconds: float = LEASE_SECONDS, last_owner: str = "") -> Claim:
    claimed = store.claim(lease_seconds, last_owner)
    assert claimed is not None
    return claimed


class Clock:
    """The time by which a store goes, which passes only when the test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.monotonic = time.monotonic
        self.sleep: Callable[[float], None] = time.sleep

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_job_from_its_first_to_its_last_file(store: JobStore) -> None:
    job = add(store, "a", files=2, request_id="r1")
    assert job.state == "queued" and job.started_at is None
    assert [file.state for file in job.files] == ["queued", "queued"]
    assert [file.name for file in job.files] == ["0.wav", "1.wav"]

    first = claim(store)
    assert (first.job_id, first.position, first.attempts, first.options) == ("a", 0, 1, {"explain": True})
    assert first.request_id == "r1"
    assert store.renew(first, LEASE_SECONDS, "Diarizer", 0.5)
    running = store.get("", "a")
    assert running.state == "running" and running.started_at is not None
    assert (running.files[0].state, running.files[0].stage, running.files[0].progress) == ("running", "Diarizer", 0.5)

    assert store.finish(first, {"overall": "Real"})
    assert store.get("", "a").state == "running"
    second = claim(store)
    assert second.position == 1
    assert store.claim(LEASE_SECONDS) is None
    assert store.finish(second, {"overall": "Fake"})
    done = store.get("", "a")
    assert done.state == "done" and done.finished_at is not None
    assert [file.result for file in done.files] == [{"overall": "Real"}, {"overall": "Fake"}]
    assert [file.progress for file in done.files] == [1.0, 1.0]
    assert store.claim(LEASE_SECONDS) is None


def test_the_oldest_file_is_next(store: JobStore) -> None:
    for name in ("b", "a", "c"):
        add(store, name, files=2)
    order = [claim(store) for _ in range(6)]
    assert [(one.job_id, one.position) for one in order] == [(name, i) for name in "bac" for i in (0, 1)]


def test_keys_take_turns_when_one_file_is_judged_at_a_time(store: JobStore) -> None:
    for name, owner, files in (("a", "cat", 1), ("b", "ann", 2), ("c", "bob", 2), ("d", "ann", 1)):
        add(store, name, owner=owner, files=files)
    order, last = [], "ann"
    for _ in range(6):
        claimed = claim(store, last_owner=last)
        last = claimed.owner
        order.append((claimed.job_id, claimed.position))
        store.finish(claimed, {})
    assert order == [("c", 0), ("a", 0), ("b", 0), ("c", 1), ("b", 1), ("d", 0)]


def test_the_key_with_the_fewest_files_in_work_is_next(store: JobStore, clock: Clock) -> None:
    add(store, "a", owner="ann", files=5)
    add(store, "b", owner="bob", files=3)
    assert [claim(store, last_owner="").owner for _ in range(3)] == ["ann", "bob", "ann"]
    assert claim(store, last_owner="ann").owner == "bob"
    long = claim(store, lease_seconds=100, last_owner="bob")
    assert long.owner == "ann"
    clock.now += LEASE_SECONDS + 1
    assert claim(store, last_owner="").owner == "bob", "files of runners that are gone are not in work"


def test_a_key_may_have_half_of_the_files_that_wait(store: JobStore) -> None:
    add(store, "a", owner="ann", files=3, max_waiting=6)
    for check in (lambda: store.check_room("ann", None, 6), lambda: add(store, "b", owner="ann", max_waiting=6)):
        with pytest.raises(RateExceeded, match="Try again when") as refused:
            check()
        assert refused.value.wait_seconds > 0
    add(store, "c", owner="bob", files=2, max_waiting=6)
    store.finish(claim(store, last_owner="bob"), {})
    add(store, "d", owner="ann", max_waiting=6)
    with pytest.raises(Overloaded):
        add(store, "e", owner="cat", files=2, max_waiting=6)


def test_a_job_of_more_than_half_of_the_files_is_taken_if_its_key_has_no_other(store: JobStore) -> None:
    add(store, "a", owner="ann", files=4, max_waiting=6)
    with pytest.raises(RateExceeded):
        add(store, "b", owner="ann", max_waiting=6)


def test_without_keys_there_is_no_limit_but_that_of_all(store: JobStore) -> None:
    add(store, "a", files=3, max_waiting=6)
    add(store, "b", files=3, max_waiting=6)


def test_a_runner_that_is_gone_loses_its_file_and_can_write_nothing_more(store: JobStore, clock: Clock) -> None:
    add(store, "a")
    dead = claim(store, lease_seconds=2)
    clock.now += 1.9
    assert store.claim(LEASE_SECONDS) is None, "its runner may still be alive"
    clock.now += 0.2
    other = claim(store)
    assert (other.job_id, other.position, other.attempts) == ("a", 0, 2)
    assert not store.renew(dead, LEASE_SECONDS, None, 0.9)
    assert not store.finish(dead, {"by": "dead"})
    store.release(dead, 0.0)
    assert store.get("", "a").files[0].state == "running"
    assert store.finish(other, {"by": "other"})
    assert not store.finish(other, {"by": "other, again"})
    assert store.get("", "a").files[0].result == {"by": "other"}


def test_a_lease_that_is_renewed_lasts(store: JobStore, clock: Clock) -> None:
    add(store, "a")
    held = claim(store, lease_seconds=2)
    for _ in range(4):
        clock.now += 1.9
        assert store.renew(held, 2, "Decoder", 0.1)
        assert store.claim(LEASE_SECONDS) is None


def test_a_file_given_back_is_tried_again_after_a_while(store: JobStore, clock: Clock) -> None:
    add(store, "a")
    store.release(claim(store), 2)
    clock.now += 1.9
    assert store.claim(LEASE_SECONDS) is None
    clock.now += 0.2
    assert claim(store).attempts == 2


def test_a_cancelled_job_takes_nothing_more(store: JobStore) -> None:
    add(store, "a", files=3)
    first, second = claim(store), claim(store)
    assert store.finish(first, {"overall": "Real"})
    job = store.cancel("", "a")
    assert job.state == "cancelled" and job.finished_at is not None
    assert [file.state for file in job.files] == ["done", "cancelled", "cancelled"]
    assert not store.renew(second, LEASE_SECONDS, None, 0.1)
    assert not store.finish(second, {"overall": "Fake"})
    assert store.claim(LEASE_SECONDS) is None
    assert store.cancel("", "a").finished_at == job.finished_at, "cancelled once"
    assert store.claim_webhook(LEASE_SECONDS) is None


def test_cancelling_a_job_that_is_done_changes_nothing(store: JobStore) -> None:
    add(store, "a")
    store.finish(claim(store), {"overall": "Real"})
    assert store.cancel("", "a") == store.get("", "a")
    assert store.get("", "a").state == "done"


def test_jobs_belong_to_the_key_that_sent_them(store: JobStore) -> None:
    add(store, "a", owner="ann")
    add(store, "b", owner="bob")
    assert store.get("ann", "a").id == "a"
    for action in (store.get, store.cancel, store.delete):
        for owner, job_id in (("bob", "a"), ("", "a"), ("ann", "nothing")):
            with pytest.raises(JobNotFound):
                action(owner, job_id)
    assert [job.id for job in store.latest("bob", 10)] == ["b"]


def test_the_same_idempotency_key_is_the_same_job(store: JobStore) -> None:
    first = add(store, "a", idempotency_key="k", fingerprint="f")
    again, is_new = store.add(
        "", [NewFile("x", 1)], {}, job_id="b", fingerprint="f", idempotency_key="k", max_waiting=100
    )
    assert not is_new and again == first
    with pytest.raises(IdempotencyConflict):
        add(store, "c", idempotency_key="k", fingerprint="other")
    assert add(store, "d", owner="ann", idempotency_key="k", fingerprint="other").id == "d"
    assert add(store, "e").id != add(store, "f").id
    assert [job.id for job in store.latest("", 10)] == ["f", "e", "a"]


def test_the_same_request_twice_at_once_is_one_job(store: JobStore) -> None:
    def send(i: int) -> str:
        return add(store, f"job{i}", idempotency_key="k", fingerprint="f").id

    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(send, range(16)))
    assert len(answers) == 1
    assert [job.id for job in store.latest("", 100)] == list(answers)


def test_no_more_files_wait_than_may(store: JobStore) -> None:
    add(store, "a", files=2, max_waiting=3)
    with pytest.raises(Overloaded):
        add(store, "b", files=2, max_waiting=3)
    store.finish(claim(store), {})
    add(store, "c", files=2, max_waiting=3)


def test_jobs_page_by_page(store: JobStore) -> None:
    for i in range(5):
        add(store, f"job{i}", files=2)
    page = store.latest("", 2)
    assert [job.id for job in page] == ["job4", "job3"]
    assert [file.name for file in page[0].files] == ["0.wav", "1.wav"]
    assert [job.id for job in store.latest("", 2, before="job3")] == ["job2", "job1"]
    assert [job.id for job in store.latest("", 2, before="job0")] == []
    with pytest.raises(JobNotFound):
        store.latest("", 2, before="none")
    with pytest.raises(JobNotFound):
        store.latest("somebody else", 2, before="job3")


def test_what_needs_no_results_reads_none(store: JobStore, url: str) -> None:
    for name in ("a", "b"):
        add(store, name, files=2)
    store.finish(claim(store), {"overall": "Real"})
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE job_files RENAME COLUMN result TO gone"))
    engine.dispose()
    job = store.get("", "a", with_results=False)
    assert [(file.state, file.result) for file in job.files] == [("done", None), ("queued", None)]
    assert store.latest("", 2, before="b") == [job]


def test_results_are_kept_so_long_and_no_longer(store: JobStore) -> None:
    add(store, "old")
    store.finish(claim(store), {"overall": "Real"})
    add(store, "cancelled")
    store.cancel("", "cancelled")
    between = time.time()
    add(store, "new")
    store.finish(claim(store), {"overall": "Real"})
    add(store, "waiting")
    assert store.delete_finished(before=between) == 2
    assert {job.id for job in store.latest("", 10)} == {"new", "waiting"}
    assert store.delete_finished(before=time.time() + 1) == 1
    assert {job.id for job in store.latest("", 10)} == {"waiting"}


def test_a_job_is_kept_until_its_webhook_is_settled(store: JobStore) -> None:
    states: tuple[WebhookState, ...] = ("pending", "delivered", "failed")
    for state in states:
        add(store, state, webhook="https://example.org/hook")
        store.finish(claim(store), {"overall": "Real"})
        store.settle_webhook(state, state)
    add(store, "cancelled", webhook="https://example.org/hook")
    store.cancel("", "cancelled")
    assert store.delete_finished(before=time.time() + 1) == 3
    assert [job.id for job in store.latest("", 10)] == ["pending"]
    store.settle_webhook("pending", "failed")
    assert store.delete_finished(before=time.time() + 1) == 1


def test_jobs_are_counted_by_state(store: JobStore) -> None:
    assert store.counts() == {"queued": 0, "running": 0, "done": 0, "cancelled": 0}
    for job_id, owner in (("first", "alice"), ("second", "bob"), ("third", "bob")):
        add(store, job_id, owner=owner)
    claim(store)
    store.cancel("bob", "third")
    assert store.counts() == {"queued": 1, "running": 1, "done": 0, "cancelled": 1}


def test_a_deleted_job_leaves_nothing(store: JobStore) -> None:
    add(store, "a", files=2)
    held = claim(store)
    store.delete("", "a")
    assert not store.finish(held, {})
    with pytest.raises(JobNotFound):
        store.get("", "a")
    assert store.known(["a"]) == set()
    assert add(store, "a", files=1).files[0].result is None


def test_whose_sound_is_still_needed(store: JobStore) -> None:
    add(store, "a", files=2)
    add(store, "b")
    store.finish(claim(store), {})
    everything = [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
    assert store.unfinished(everything) == {("a", 1), ("b", 0)}
    assert store.known(["a", "b", "c"]) == {"a", "b"}


def test_a_webhook_is_due_when_its_job_is_done_and_again_until_it_is_settled(store: JobStore, clock: Clock) -> None:
    add(store, "a", files=2, webhook="https://example.org/hook")
    add(store, "silent")
    store.finish(claim(store), {})
    assert store.claim_webhook(LEASE_SECONDS) is None
    store.finish(claim(store), {})
    store.finish(claim(store), {})
    due = store.claim_webhook(2)
    assert due is not None
    assert (due.id, due.webhook, due.webhook_attempts) == ("a", "https://example.org/hook", 1)
    clock.now += 1.9
    assert store.claim_webhook(LEASE_SECONDS) is None, "a runner is sending it"
    clock.now += 0.2
    again = store.claim_webhook(LEASE_SECONDS)
    assert again is not None and again.webhook_attempts == 2, "the runner that had it is gone"
    store.settle_webhook("a", "pending", 2)
    clock.now += 1.9
    assert store.claim_webhook(LEASE_SECONDS) is None
    clock.now += 0.2
    assert store.claim_webhook(LEASE_SECONDS) is not None
    store.settle_webhook("a", "delivered")
    clock.now += 1_000
    assert store.claim_webhook(LEASE_SECONDS) is None
    assert (store.get("", "a").webhook_state, store.get("", "a").webhook_attempts) == ("delivered", 3)


def test_a_webhook_to_a_busy_host_lets_the_others_pass(store: JobStore) -> None:
    for name, host in (("a", "slow.example"), ("b", "SLOW.example:81"), ("c", "other.example")):
        add(store, name, webhook=f"https://{host}/hook")
        store.finish(claim(store), {})
    passing = store.claim_webhook(LEASE_SECONDS, ["slow.example"])
    assert passing is not None and passing.id == "c"
    assert store.claim_webhook(LEASE_SECONDS, ["slow.example"]) is None
    oldest = store.claim_webhook(LEASE_SECONDS)
    assert oldest is not None and oldest.id == "a"


def test_thousands_of_webhooks_to_a_busy_host_are_not_read_one_by_one(store: JobStore, url: str) -> None:
    for name in ("a", "b"):
        add(store, name, webhook=f"https://{name}.example/hook")
        store.finish(claim(store), {})
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        columns = [column["name"] for column in sa.inspect(connection).get_columns("jobs")]
        values = ", ".join(
            {"id": "id || n", "webhook_due_at": "webhook_due_at - 9"}.get(name, name) for name in columns
        )
        rows = "WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 5000)"
        copies = f"{rows} SELECT {values} FROM jobs, many WHERE id = 'a'"
        connection.execute(sa.text(f"INSERT INTO jobs ({', '.join(columns)}) {copies}"))
    engine.dispose()
    began = time.process_time()
    for _ in range(20):
        assert store.claim_webhook(LEASE_SECONDS, ["a.example", "b.example"]) is None
    assert time.process_time() - began < 2
    passing = store.claim_webhook(LEASE_SECONDS, ["a.example"])
    assert passing is not None and passing.id == "b"


def test_a_webhook_that_is_too_late_is_given_up_and_its_job_can_expire(store: JobStore) -> None:
    for name in ("late", "delivered", "new"):
        add(store, name, webhook="https://example.org/hook")
        store.finish(claim(store), {})
        if name == "delivered":
            store.settle_webhook(name, "delivered")
            between = time.time()
    add(store, "unfinished", webhook="https://example.org/hook")
    assert store.give_up_webhooks(before=between) == 1
    states = {job.id: job.webhook_state for job in store.latest("", 10)}
    assert states == {"late": "failed", "delivered": "delivered", "new": "pending", "unfinished": None}
    assert store.delete_finished(before=time.time() + 1) == 2


def test_a_database_of_an_older_version_gets_the_columns_that_it_lacks(store: JobStore, url: str) -> None:
    add(store, "old", webhook="https://slow.example/hook")
    store.finish(claim(store), {})
    add(store, "unfinished")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX webhooks_to_claim"))
        for column in LATER_COLUMNS:
            connection.execute(sa.text(f"ALTER TABLE jobs DROP COLUMN {column.name}"))
    engine.dispose()
    with closing(JobStore(url)) as newer:
        assert newer.claim_webhook(LEASE_SECONDS, ["slow.example"]) is None
        assert claim(newer).request_id == ""
        add(newer, "new", webhook="https://other.example/hook")
        newer.finish(claim(newer), {})
        for busy, name in ((["slow.example"], "new"), ([], "old")):
            due = newer.claim_webhook(LEASE_SECONDS, busy)
            assert due is not None and due.id == name


def work(url: str, name: str, seconds: float) -> list[tuple[str, int]]:
    """Claim and finish files until all jobs are done. Returns the files whose results were written.

    The processes that share `together` begin at the same time, and go on when each has its first file.
    """
    written = []
    until = time.monotonic() + seconds
    with closing(JobStore(url)) as store:
        together[0].wait(seconds)
        claimed: Claim | None = claim(store)
        together[0].wait(seconds)
        while time.monotonic() < until:
            if claimed and store.finish(claimed, {"by": name}):
                written.append((claimed.job_id, claimed.position))
            elif not claimed and all(job.state == "done" for job in store.latest("", 100)):
                break
            claimed = store.claim(LEASE_SECONDS)
    return written


together: list[Barrier] = []
"""In a process that works: the barrier that it shares with the others."""


def share(barrier: Barrier) -> None:
    together.append(barrier)


def test_processes_that_race_do_each_file_once(store: JobStore, url: str) -> None:
    for i in range(6):
        add(store, f"job{i}", files=5)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(3, share, (spawn.Barrier(3),)) as pool:
        written = pool.starmap(work, [(url, f"worker{i}", 300.0) for i in range(3)])
    assert all(written), "each has done a part"
    counts = Counter(file for one in written for file in one)
    assert len(counts) == 30 and set(counts.values()) == {1}
    jobs = store.latest("", 100)
    assert {job.state for job in jobs} == {"done"}
    assert all(job.finished_at for job in jobs)
    assert {file.attempts for job in jobs for file in job.files} == {1}


def test_files_finished_at_the_same_moment_end_their_job(store: JobStore) -> None:
    """If the transactions did not wait for each other, each would see the other's file unfinished, and nobody would end
    the job."""
    for i in range(10):
        add(store, f"job{i}", files=2, webhook="https://example.org/hook")
        pair = [claim(store), claim(store)]
        with ThreadPoolExecutor(2) as threads:
            assert all(threads.map(lambda one: store.finish(one, {}), pair))
        assert store.get("", f"job{i}").state == "done"
    assert store.claim(LEASE_SECONDS) is None


def test_claims_cancellations_and_ends_do_not_wait_for_each_other_for_ever(store: JobStore) -> None:
    for i in range(20):
        add(store, f"job{i}", files=3)

    def finish_some(_: int) -> None:
        while claimed := store.claim(LEASE_SECONDS):
            store.renew(claimed, LEASE_SECONDS, "Decoder", 0.2)
            store.finish(claimed, {})

    with ThreadPoolExecutor(6) as threads:
        ends = [threads.submit(store.cancel, "", f"job{i}") for i in range(0, 20, 2)]
        list(threads.map(finish_some, range(4)))
        for end in ends:
            end.result()
    finish_some(0)
    jobs = store.latest("", 100)
    assert {job.state for job in jobs} <= {"done", "cancelled"}
    for job in jobs:
        assert {file.state for file in job.files} <= ({"done"} if job.state == "done" else {"done", "cancelled"})


def test_tables_that_are_made_twice_at_once(url: str) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        stores = [stack.enter_context(closing(JobStore(url))) for _ in range(4)]
        list(threads.map(JobStore.create_tables, stores))
        add(stores[0], "a")
        assert stores[1].get("", "a").id == "a"


def test_a_database_that_is_not_there_is_a_sentence() -> None:
    for url in ("sqlite:////nowhere/at/all.sqlite3", "postgresql+psycopg://jobs@127.0.0.1:1/none"):
        with pytest.raises(StoreUnavailable, match=r"Try again in a while\.$"):
            JobStore(url).get("", "a")


def test_a_postgresql_that_never_answers_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://jobs@127.0.0.1:{silent.getsockname()[1]}/none"
        with closing(JobStore(url)) as store, pytest.raises(StoreUnavailable, match=r"Try again in a while\.$"):
            store.get("", "a")


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_postgresql_that_takes_too_long_is_a_sentence(
    store: JobStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a")
    monkeypatch.setattr(module, "STATEMENT_SECONDS", 3)
    engine = sa.create_engine(url)
    with engine.begin() as locking, closing(JobStore(url)) as hurried:
        hurried.create_tables()
        locking.execute(sa.text("SELECT * FROM jobs FOR UPDATE"))
        with pytest.raises(StoreUnavailable, match=r"Try again in a while\.$"):
            hurried.cancel("", "a")
    engine.dispose()
    assert store.cancel("", "a").state == "cancelled"


@pytest.mark.parametrize("missing", ["jobs.webhook", "job_files.name", "job_files.result"])
def test_an_error_of_the_database_tells_nothing_of_a_job(
    store: JobStore, url: str, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = {"file": "a patient.wav", "owner": "owner-7", "webhook": "https://example.org/token", "result": "Fake"}
    add(store, "first")
    claimed = claim(store)
    table, column = missing.split(".")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"ALTER TABLE {table} RENAME COLUMN {column} TO gone"))
    engine.dispose()
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as raised:
        if column == "result":
            store.finish(claimed, {"overall": secrets["result"]})
        files = [NewFile(secrets["file"], 1)]
        options: dict[str, Any] = {"job_id": "b", "fingerprint": "f", "webhook": secrets["webhook"]}
        store.add(secrets["owner"], files, {}, max_waiting=100, **options)
    told = caplog.text + "".join(traceback.format_exception(raised.value))
    assert "The database of the jobs failed." in told
    assert not [secret for secret in secrets.values() if secret in told]


def test_a_new_file_that_another_writes_to_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    """The replicas of a starting service create the tables at the same time. SQLite itself would not wait; it would
    raise an error at once."""
    file, waits = tmp_path / "jobs.db", threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    clock.sleep = sleep  # which the store calls when SQLite has refused
    with closing(sqlite3.connect(file, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("CREATE TABLE something (id)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM something").fetchall()
        other.execute("INSERT INTO something VALUES (1)")
        with closing(JobStore(f"sqlite:///{file}")) as store:
            creating = pool.submit(store.create_tables)
            assert waits.wait(60) and not creating.done()
            other.execute("COMMIT")
            creating.result()
            add(store, "a")
