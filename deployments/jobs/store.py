"""The state of every job, in SQLite or PostgreSQL.

A runner claims a file of a job by an atomic update. It gets a lease, which it renews while it works. A dead runner does
not renew its lease, so another runner claims the file when the lease is over. A runner that lost its lease cannot write
any more. So each file has one result, written in one transaction with the state of its job.

All times are seconds since 1970 by the clocks of the machines, which must agree to within a few seconds.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from deployments.jobs.webhooks import host_of
from pipeline.errors import IdempotencyConflict, JobNotFound, Overloaded, RateExceeded, StoreUnavailable

logger = logging.getLogger("ray.serve")

State = Literal["queued", "running", "done", "cancelled"]
WebhookState = Literal["pending", "delivered", "failed"]
UNFINISHED: tuple[State, ...] = ("queued", "running")

TOO_MANY_FILES = (
    "Too many files of this key are waiting: a key may have half of all. Try again when some of them are judged."
)
RETRY_FILES_SECONDS = 30.0
"""When to try again: a guess, because nobody knows how long the files will take."""

BUSY_SECONDS = 30
"""How long SQLite waits for another process that is writing."""

CONNECT_SECONDS = 10
"""How long PostgreSQL may take to accept a connection."""

STATEMENT_SECONDS = 30
"""How long a statement may take in PostgreSQL, with its wait for others, and how long its machine may be silent."""

TABLES_LOCK = 0x536F756E64
"""The number of the advisory lock. Any number works if no other user of the database locks it."""

READS_ONLY = "reads_only"
"""Option of a transaction that only reads, and so does not wait for writers."""

_metadata = sa.MetaData()

_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(40), nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float, index=True),
    sa.Column("webhook", sa.Text),
    sa.Column("webhook_host", sa.Text),
    sa.Column("webhook_state", sa.String(10)),
    sa.Column("webhook_attempts", sa.Integer, nullable=False, default=0),
    sa.Column("webhook_due_at", sa.Float),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("jobs_of_an_owner", "owner", "created_at", "id"),
)

_webhooks_to_claim = sa.Index("webhooks_to_claim", _jobs.c.webhook_state, _jobs.c.webhook_due_at, _jobs.c.webhook_host)

LATER_COLUMNS = (_jobs.c.request_id, _jobs.c.webhook_host)
"""The columns that the first version of the table did not have."""

_files = sa.Table(
    "job_files",
    _metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("lease", sa.String(32)),
    sa.Column("leased_until", sa.Float),
    sa.Column("stage", sa.String(40)),
    sa.Column("progress", sa.Float, nullable=False, default=0.0),
    sa.Column("result", sa.JSON),
    sa.Index("files_to_claim", "state", "created_at", "position"),
)

_without_result = [column if column.name != "result" else sa.null().label("result") for column in _files.c]


@dataclass(frozen=True)
class NewFile:
    """A file that came with a job: the name to show, and its size in bytes."""

    name: str | None
    size: int


@dataclass(frozen=True)
class JobFile:
    """A file of a job. `progress` is from 0 to 1; `result` is None until it is done."""

    position: int
    name: str | None
    size: int
    state: State
    attempts: int
    stage: str | None
    progress: float
    result: dict[str, Any] | None


@dataclass(frozen=True)
class Job:
    """A job and its files, by position."""

    id: str
    owner: str
    options: dict[str, Any]
    state: State
    created_at: float
    started_at: float | None
    finished_at: float | None
    webhook: str | None
    webhook_state: WebhookState | None
    webhook_attempts: int
    files: tuple[JobFile, ...]


@dataclass(frozen=True)
class Claim:
    """The right to judge a file, as long as `lease` is renewed. `attempts` includes the current one; `request_id` is
    that of the request that sent it."""

    job_id: str
    position: int
    name: str | None
    lease: str
    attempts: int
    owner: str
    options: dict[str, Any]
    request_id: str


class JobStore:
    """The store of all jobs. Its calls block until the database answers. Threads and processes may share the database.

    The first call makes the tables. Raises StoreUnavailable if the database fails.
    """

    def __init__(self, url: str) -> None:
        # Parameters are hidden, because they hold names of files, results and addresses, and errors get into the log.
        is_sqlite = sa.make_url(url).get_backend_name() == "sqlite"
        limits = {} if is_sqlite else _time_limits()
        self._engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=limits)
        prepare = _prepare_sqlite if is_sqlite else _prepare_postgresql
        prepare(self._engine)
        self._has_tables = False

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._engine.dispose()

    def create_tables(self) -> None:
        """Make the tables that do not exist yet, and add to old ones the columns that they lack."""
        with self._begin(reads_only=False) as connection:
            if self._engine.dialect.name == "postgresql":  # two processes may make a table at once
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TABLES_LOCK)))
            _metadata.create_all(connection)
            _add_later_columns(connection)
        self._has_tables = True

    def add(
        self,
        owner: str,
        files: Sequence[NewFile],
        options: dict[str, Any],
        *,
        job_id: str,
        fingerprint: str,
        request_id: str = "",
        idempotency_key: str | None = None,
        webhook: str | None = None,
        max_waiting: int,
    ) -> tuple[Job, bool]:
        """A new job and True, or the existing job with the owner's idempotency key and False.

        Raises IdempotencyConflict if the existing job came from another request, Overloaded if `max_waiting` files
        wait, and RateExceeded if half of them are this owner's.
        """
        now = time.time()
        job = {"id": job_id, "owner": owner, "options": options, "state": "queued", "created_at": now}
        job |= {"fingerprint": fingerprint, "idempotency_key": idempotency_key, "request_id": request_id}
        job |= {"webhook": webhook, "webhook_host": webhook and host_of(webhook)}
        rows = [
            {"job_id": job_id, "position": i, "name": file.name, "size": file.size, "state": "queued"}
            | {"created_at": now, "due_at": now}
            for i, file in enumerate(files)
        ]
        try:
            with self._transaction() as connection:
                if idempotency_key and (known := self._by_key(connection, owner, idempotency_key, fingerprint)):
                    return known, False
                _check_room(connection, owner, len(rows), max_waiting)
                connection.execute(_jobs.insert(), job)
                connection.execute(_files.insert(), rows)
                return self._read(connection, job_id), True
        except IntegrityError:  # the same request came twice at once, and the other one was first
            with self._transaction() as connection:
                known = self._by_key(connection, owner, idempotency_key or "", fingerprint)
            if known is None:
                raise
            return known, False

    def check_room(self, owner: str, idempotency_key: str | None, max_waiting: int) -> None:
        """Raises as `add` if it would refuse any new job, and the owner has none with the idempotency key."""
        with self._transaction(reads_only=True) as connection:
            mine = (_jobs.c.owner == owner) & (_jobs.c.idempotency_key == idempotency_key)
            if not (idempotency_key and connection.scalar(sa.select(sa.exists().where(mine)))):
                _check_room(connection, owner, 1, max_waiting)

    def get(self, owner: str, job_id: str, *, with_results: bool = True) -> Job:
        """A job of this owner. Raises JobNotFound."""
        with self._transaction(reads_only=True) as connection:
            job = self._read(connection, job_id, with_results=with_results)
        if job.owner != owner:
            raise not_found()
        return job

    def latest(self, owner: str, limit: int, before: str | None = None) -> list[Job]:
        """The owner's jobs without their results, newest first. If `before` is given, only jobs older than that one.

        Raises JobNotFound if the job `before` does not exist or has another owner.
        """
        with self._transaction(reads_only=True) as connection:
            chosen = sa.select(_jobs).where(_jobs.c.owner == owner)
            if before is not None:
                last = connection.execute(
                    sa.select(_jobs.c.created_at, _jobs.c.id).where((_jobs.c.id == before) & (_jobs.c.owner == owner))
                ).first()
                if last is None:
                    raise not_found()
                chosen = chosen.where(
                    sa.tuple_(_jobs.c.created_at, _jobs.c.id) < sa.tuple_(sa.literal(last.created_at), last.id)
                )
            chosen = chosen.order_by(_jobs.c.created_at.desc(), _jobs.c.id.desc()).limit(limit)
            jobs = connection.execute(chosen).mappings().all()
            files = connection.execute(
                sa.select(*_without_result)
                .where(_files.c.job_id.in_([job["id"] for job in jobs]))
                .order_by(_files.c.job_id, _files.c.position)
            ).mappings()
            by_job: dict[str, list[JobFile]] = {job["id"]: [] for job in jobs}
            for row in files:
                by_job[row["job_id"]].append(_file(row))
        return [_job(job, by_job[job["id"]]) for job in jobs]

    def counts(self) -> dict[str, int]:
        """How many jobs of all owners are in each state."""
        with self._transaction(reads_only=True) as connection:
            found = connection.execute(sa.select(_jobs.c.state, sa.func.count().label("jobs")).group_by(_jobs.c.state))
            return dict.fromkeys(get_args(State), 0) | {row.state: row.jobs for row in found}

    def cancel(self, owner: str, job_id: str) -> Job:
        """End a job that is not finished, so that no result is written to it any more. Returns the job after that.

        Raises JobNotFound.
        """
        with self._transaction() as connection:
            job = self._lock(connection, job_id)
            if job is None or job.owner != owner:
                raise not_found()
            mine = (_files.c.job_id == job_id) & _files.c.state.in_(UNFINISHED)
            connection.execute(
                _jobs.update()
                .where((_jobs.c.id == job_id) & _jobs.c.state.in_(UNFINISHED))
                .values(state="cancelled", finished_at=time.time())
            )
            connection.execute(_files.update().where(mine).values(state="cancelled", lease=None, stage=None))
            return self._read(connection, job_id)

    def delete(self, owner: str, job_id: str) -> None:
        """Delete a job and its results. Raises JobNotFound."""
        with self._transaction() as connection:
            job = self._lock(connection, job_id)
            if job is None or job.owner != owner:
                raise not_found()
            _delete(connection, _jobs.c.id == job_id)

    def delete_finished(self, before: float) -> int:
        """Delete the jobs that were finished before that time and whose webhook is not pending. Returns how many."""
        with self._transaction() as connection:
            is_settled = _jobs.c.webhook_state.is_distinct_from("pending")
            return _delete(connection, (_jobs.c.finished_at < before) & is_settled)

    def claim(self, lease_seconds: float, last_owner: str = "") -> Claim | None:
        """Claim the file whose turn it is; None if there is none.

        It is the oldest file of the owner with the fewest files in work. Among several such owners, it is the turn of
        the one after `last_owner`, by name, and after the last name that of the first. Files that no runner has, and
        files whose lease is over, can be claimed. A job that another process is changing at this moment is skipped.
        """
        now = time.time()
        with self._transaction() as connection:
            found = connection.execute(_next_file(now, last_owner)).first()
            if found is None:
                return None
            claim = Claim(
                found.job_id,
                found.position,
                found.name,
                secrets.token_hex(16),
                found.attempts + 1,
                found.owner,
                found.options,
                found.request_id or "",
            )
            # The condition is checked again, because another runner may have claimed the file in between.
            taken = connection.execute(
                _files.update()
                .where(_is_file(claim) & _may_be_claimed(now))
                .values(
                    state="running",
                    lease=claim.lease,
                    leased_until=now + lease_seconds,
                    attempts=claim.attempts,
                    stage=None,
                    progress=0.0,
                )
            )
            if taken.rowcount == 0:
                return None
            connection.execute(
                _jobs.update()
                .where(_jobs.c.id == claim.job_id)
                .values(state="running", started_at=sa.func.coalesce(_jobs.c.started_at, now))
            )
            return claim

    def renew(self, claim: Claim, lease_seconds: float, stage: str | None, progress: float) -> bool:
        """Renew a claim, and store the progress. False if the claim is lost or the job was cancelled."""
        with self._transaction() as connection:
            renewed = connection.execute(
                _files.update()
                .where(_holds(claim))
                .values(leased_until=time.time() + lease_seconds, stage=stage, progress=progress)
            )
            return renewed.rowcount == 1

    def release(self, claim: Claim, delay_seconds: float) -> None:
        """Give a claim back, so that the file is tried again after the delay."""
        with self._transaction() as connection:
            connection.execute(
                _files.update()
                .where(_holds(claim))
                .values(state="queued", lease=None, stage=None, progress=0.0, due_at=time.time() + delay_seconds)
            )

    def finish(self, claim: Claim, result: dict[str, Any]) -> bool:
        """Write the result of a file, and end its job if it was the last. False if the claim was lost."""
        now = time.time()
        with self._transaction() as connection:
            job = self._lock(connection, claim.job_id)
            done = connection.execute(
                _files.update()
                .where(_holds(claim))
                .values(state="done", lease=None, stage=None, progress=1.0, result=result)
            )
            if job is None or done.rowcount == 0:
                return False
            unfinished = (_files.c.job_id == claim.job_id) & _files.c.state.in_(UNFINISHED)
            if connection.scalar(sa.select(sa.exists().where(unfinished))):
                return True
            connection.execute(_jobs.update().where(_jobs.c.id == claim.job_id).values(state="done", finished_at=now))
            connection.execute(
                _jobs.update()
                .where((_jobs.c.id == claim.job_id) & _jobs.c.webhook.is_not(None))
                .values(webhook_state="pending", webhook_due_at=now)
            )
            return True

    def claim_webhook(self, lease_seconds: float, busy_hosts: Collection[str] = ()) -> Job | None:
        """A finished job whose webhook is due and goes to none of the busy hosts.

        The webhook is due again when the lease ends, unless `settle_webhook` stores its outcome before.
        """
        now = time.time()
        is_due = (_jobs.c.webhook_state == "pending") & (_jobs.c.webhook_due_at <= now)
        is_free = _jobs.c.webhook_host.not_in(busy_hosts)
        due = sa.select(_jobs.c.id).where(is_due & is_free).order_by(_jobs.c.webhook_due_at).limit(1)
        with self._transaction() as connection:
            job_id = connection.scalar(due)
            if job_id is None:
                return None
            # The condition is checked again, because another runner may have claimed the webhook in between.
            taken = connection.execute(
                _jobs.update()
                .where((_jobs.c.id == job_id) & is_due)
                .values(webhook_attempts=_jobs.c.webhook_attempts + 1, webhook_due_at=now + lease_seconds)
            )
            return self._read(connection, job_id) if taken.rowcount else None

    def settle_webhook(self, job_id: str, state: WebhookState, delay_seconds: float = 0.0) -> None:
        """Store the state of a webhook. A pending one is due again after the delay."""
        with self._transaction() as connection:
            connection.execute(
                _jobs.update()
                .where(_jobs.c.id == job_id)
                .values(webhook_state=state, webhook_due_at=time.time() + delay_seconds)
            )

    def give_up_webhooks(self, before: float) -> int:
        """End the webhooks that are still pending although their job was finished before that time. Returns how
        many."""
        with self._transaction() as connection:
            is_late = (_jobs.c.webhook_state == "pending") & (_jobs.c.finished_at < before)
            return connection.execute(_jobs.update().where(is_late).values(webhook_state="failed")).rowcount

    def unfinished(self, among: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of the given files, by job and position, whose sound is still needed."""
        with self._transaction(reads_only=True) as connection:
            rows = connection.execute(
                sa.select(_files.c.job_id, _files.c.position).where(
                    _files.c.state.in_(UNFINISHED) & _files.c.job_id.in_({job_id for job_id, _ in among})
                )
            )
            return {(row.job_id, row.position) for row in rows} & set(among)

    def known(self, among: Sequence[str]) -> set[str]:
        """Those of the given jobs that exist."""
        with self._transaction(reads_only=True) as connection:
            return set(connection.scalars(sa.select(_jobs.c.id).where(_jobs.c.id.in_(among))))

    def _by_key(self, connection: sa.Connection, owner: str, key: str, fingerprint: str) -> Job | None:
        known = connection.execute(
            sa.select(_jobs.c.id, _jobs.c.fingerprint).where(
                (_jobs.c.owner == owner) & (_jobs.c.idempotency_key == key)
            )
        ).first()
        if known is None:
            return None
        if known.fingerprint != fingerprint:
            raise IdempotencyConflict(
                "This Idempotency-Key came with another request before. Use a new key for each job."
            )
        return self._read(connection, known.id)

    def _lock(self, connection: sa.Connection, job_id: str) -> sa.Row[Any] | None:
        """The row of a job, locked against changes by others until this transaction is over.

        Every change of a job or its files locks the job first, so that there is no deadlock.
        """
        return connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id).with_for_update()).first()

    def _read(self, connection: sa.Connection, job_id: str, *, with_results: bool = True) -> Job:
        job = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).mappings().first()
        if job is None:
            raise not_found()
        columns = _files.c if with_results else _without_result
        files = connection.execute(
            sa.select(*columns).where(_files.c.job_id == job_id).order_by(_files.c.position)
        ).mappings()
        return _job(job, [_file(row) for row in files])

    @contextmanager
    def _transaction(self, *, reads_only: bool = False) -> Iterator[sa.Connection]:
        if not self._has_tables:
            self.create_tables()
        with self._begin(reads_only=reads_only) as connection:
            yield connection

    @contextmanager
    def _begin(self, *, reads_only: bool) -> Iterator[sa.Connection]:
        engine = self._engine.execution_options(**{READS_ONLY: reads_only})
        try:
            with engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            logger.exception("The database of the jobs failed.")
            raise StoreUnavailable("The jobs cannot be reached at present. Try again in a while.") from error


def _add_later_columns(connection: sa.Connection) -> None:
    known = {column["name"] for column in sa.inspect(connection).get_columns(_jobs.name)}
    for column in LATER_COLUMNS:
        if column.name not in known:
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {_jobs.name} ADD COLUMN {column.name} {kind}"))
    _webhooks_to_claim.create(connection, checkfirst=True)
    without = sa.select(_jobs.c.id, _jobs.c.webhook).where(_jobs.c.webhook.is_not(None), _jobs.c.webhook_host.is_(None))
    for job_id, url in connection.execute(without).all():
        connection.execute(_jobs.update().where(_jobs.c.id == job_id).values(webhook_host=host_of(url)))


def _check_room(connection: sa.Connection, owner: str, files: int, max_waiting: int) -> None:
    """Raises Overloaded or RateExceeded. An owner without a file may send any job for which there is room."""
    count = sa.func.count()
    unfinished = sa.select(count, count.filter(_jobs.c.owner == owner)).select_from(_files).join(_jobs)
    all_files, owners_files = connection.execute(unfinished.where(_files.c.state.in_(UNFINISHED))).one()
    if all_files + files > max_waiting:
        raise Overloaded("Too many files are waiting. Try again in a while.")
    if owner and owners_files and owners_files + files > max_waiting / 2:
        raise RateExceeded(TOO_MANY_FILES, RETRY_FILES_SECONDS)


def _may_be_claimed(now: float) -> sa.ColumnElement[bool]:
    """Whether no runner has a file at this time: it waits, or its lease is over."""
    is_free = (_files.c.state == "queued") & (_files.c.due_at <= now)
    is_left = (_files.c.state == "running") & (_files.c.leased_until < now)
    return is_free | is_left


def _next_file(now: float, last_owner: str) -> sa.Select[Any]:
    """The query for the file whose turn it is; see `JobStore.claim`."""
    is_held = (_files.c.state == "running") & (_files.c.leased_until >= now)
    in_work = (
        sa.select(_jobs.c.owner, sa.func.count().label("files"))
        .select_from(_files)
        .join(_jobs)
        .where(is_held)
        .group_by(_jobs.c.owner)
        .subquery()
    )
    return (
        sa.select(_files.c.job_id, _files.c.position, _files.c.name, _files.c.attempts)
        .add_columns(_jobs.c.owner, _jobs.c.options, _jobs.c.request_id)
        .join(_jobs)
        .outerjoin(in_work, in_work.c.owner == _jobs.c.owner)
        .where(_may_be_claimed(now))
        .order_by(sa.func.coalesce(in_work.c.files, 0), _jobs.c.owner <= last_owner, _jobs.c.owner)
        .order_by(_files.c.created_at, _files.c.job_id, _files.c.position)
        .limit(1)
        .with_for_update(of=_jobs, skip_locked=True)
    )


def _is_file(claim: Claim) -> sa.ColumnElement[bool]:
    return (_files.c.job_id == claim.job_id) & (_files.c.position == claim.position)


def _holds(claim: Claim) -> sa.ColumnElement[bool]:
    return _is_file(claim) & (_files.c.lease == claim.lease) & (_files.c.state == "running")


def _delete(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    ids = sa.select(_jobs.c.id).where(which)
    connection.execute(_files.delete().where(_files.c.job_id.in_(ids)))
    return connection.execute(_jobs.delete().where(which)).rowcount


def not_found() -> JobNotFound:
    """The error for a job that is not in the store, or that has another owner."""
    return JobNotFound("There is no such job, or it was deleted. Results are kept for a limited time.")


def _job(row: Mapping[Any, Any], files: Sequence[JobFile]) -> Job:
    fields = {field.name for field in dataclasses.fields(Job)} - {"files"}
    return Job(**{name: row[name] for name in fields}, files=tuple(files))


def _file(row: Mapping[Any, Any]) -> JobFile:
    return JobFile(**{field.name: row[field.name] for field in dataclasses.fields(JobFile)})


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Use a write-ahead log. SQLite refuses this, without waiting, while another process opens the same new file."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _time_limits() -> dict[str, int]:
    """What libpq must know so that no call waits long for a PostgreSQL whose machine or network is gone."""
    return {
        "connect_timeout": CONNECT_SECONDS,  # seconds
        "tcp_user_timeout": STATEMENT_SECONDS * 1000,  # milliseconds without an answer of its machine
        "keepalives_idle": CONNECT_SECONDS,  # seconds after which a silent machine is asked whether it is there
    }


def _prepare_postgresql(engine: sa.Engine) -> None:
    """Limit the time of each statement. Not among the arguments of a connection: there it would replace the `options`
    in the URL."""

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.execute(f"SET statement_timeout TO {STATEMENT_SECONDS * 1000}")
        connection.commit()


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Let several processes share the file: many readers, and one writer that waits for its turn at its start.

    Python's own handling of transactions would begin a transaction too late for that.
    """

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        _write_ahead(connection)
        for pragma in (
            "synchronous=FULL",
            f"busy_timeout={BUSY_SECONDS * 1000}",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reads_only = connection.get_execution_options().get(READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
