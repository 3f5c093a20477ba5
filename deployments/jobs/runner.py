"""The JobRunner: takes files of jobs from the database and sends them through the graph, several at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments import metrics
from deployments.access import Access, AccessConfig, Limits
from deployments.args import JobSettings
from deployments.embedded import embedded_stages
from deployments.graph import Graph, Progress
from deployments.jobs import answer
from deployments.jobs.progress import Pace
from deployments.jobs.sound import SPARE_SECONDS, SoundFolder
from deployments.jobs.store import Claim, Job, JobStore
from deployments.jobs.webhooks import Webhooks, host_of, patience_seconds, pause_seconds, read_secret
from deployments.results import JudgedFile, problem
from deployments.threads import in_threads
from pipeline.config import DetectorConfig
from pipeline.errors import Overloaded, SoundSentryError, StageUnavailable, StoreUnavailable

logger = logging.getLogger("ray.serve")

P = ParamSpec("P")
T = TypeVar("T")

POLL_SECONDS = 0.5
"""Seconds between two queries: for new work, and, during work, whether the job was cancelled."""

OUTAGE_SECONDS = 2.0
"""How long to wait if the database does not answer."""

SWEEP_SECONDS = 60.0

COUNT_SECONDS = 5.0
"""Seconds between two counts of jobs. Ray drops a gauge that is not set for about 20 seconds."""

PARALLEL_WEBHOOKS = 8
"""How many webhooks a runner sends at a time, each to another host."""

WEBHOOK_LEASE_SECONDS = 60.0
"""If a webhook that was begun is not finished after this time, its runner counts as lost."""

RETRY_SECONDS = 5.0
"""How long a file waits after a stage was down, multiplied by the number of attempts so far."""


@serve.deployment
class JobRunner:
    """Judges the files of jobs, sends webhooks, and deletes old jobs. It takes no requests.

    If it dies, another runner, or the same after a restart, continues its files. Without `stages` it runs the stages
    itself. `max_body_seconds` is how long the upload of a job may take.
    """

    def __init__(
        self,
        config: DetectorConfig,
        settings: JobSettings,
        access: AccessConfig,
        max_body_seconds: float,
        stages: dict[str, DeploymentHandle[Any]] | None,
    ) -> None:
        self._settings = settings
        self._access = Access(access, Limits() if access.keys else None)
        self._keys = {key.name: key for key in access.keys}
        self._arriving_seconds = max_body_seconds + SPARE_SECONDS
        self._sound = SoundFolder(settings.sound_path)
        self._sound.create()  # first: the database may lie in this folder
        self._store = JobStore(settings.database_url)
        found = stages or embedded_stages(config)
        self._graph = Graph(found, dict.fromkeys(found, settings.file_seconds), settings.file_seconds)
        self._pace = Pace()
        secret = settings.webhook_secret_file
        self._webhooks = Webhooks(read_secret(secret), settings.webhook_networks) if secret else None
        self._patience = patience_seconds(settings.webhook_attempts, settings.webhook_first_pause_seconds)
        self._started_at = time.time()
        self._last_owner = ""  # of the file that was begun last
        # A thread for each call that may block at the same time, so that no lease waits for another call.
        self._threads = ThreadPoolExecutor(settings.parallel_files + PARALLEL_WEBHOOKS + 2, "jobs")
        self._sending: dict[str, asyncio.Task[None]] = {}  # by host, while a webhook is being sent to it
        turns = [*[self._judge_next] * settings.parallel_files, self._sweep, self._count]
        self._loops = [asyncio.create_task(_repeat(turn)) for turn in turns]
        self._loops.append(asyncio.create_task(self._send_webhooks()))

    async def check_health(self) -> None:
        """Raises if a part of the runner has ended, so that Serve starts a new replica."""
        for loop in self._loops:
            if loop.done():
                loop.result()
        await self._graph.check_embedded()

    async def _judge_next(self) -> float:
        """Judge the file whose turn it is. Returns how long to wait before the next call."""
        claim = await in_threads(self._threads, self._store.claim, self._settings.lease_seconds, self._last_owner)
        if claim is None:
            return POLL_SECONDS
        self._last_owner = claim.owner
        try:
            if claim.attempts > self._settings.max_attempts:
                raise SoundSentryError("Each process that judged this file was lost. There is no verdict on it.")
            judged = await self._judge(claim)
        except (StageUnavailable, Overloaded) as error:
            if claim.attempts < self._settings.max_attempts:
                await self._insist(self._store.release, claim, RETRY_SECONDS * claim.attempts)
            else:
                await self._fail(claim, error)
        except SoundSentryError as error:
            await self._fail(claim, error)
        except Exception:
            logger.exception("A file of job %s failed. Request %s sent it.", claim.job_id, claim.request_id)
            mistake = SoundSentryError("The service failed on this file. There is no verdict on it.")
            await self._fail(claim, mistake)
        else:
            if judged and await self._finish(claim, judged.model_dump(mode="json")):
                metrics.count_verdict(judged)
                await self._access.charge(self._keys.get(claim.owner), judged.duration_seconds)
        return 0.0

    async def _judge(self, claim: Claim) -> JudgedFile | None:
        """The result of a file; None if its job was cancelled or the claim was lost."""
        sound = await in_threads(self._threads, self._sound.read, claim.job_id, claim.position)
        progress = Progress()
        work = asyncio.create_task(self._graph.predict(sound, **claim.options, progress=progress))
        loop = asyncio.get_running_loop()
        try:
            while not (await asyncio.wait((work,), timeout=POLL_SECONDS))[0]:
                share = self._pace.share_done(progress, loop.time(), claim.options["use_diarization"])
                stage = progress.stages[-1][0] if progress.stages else None
                lease_seconds = self._settings.lease_seconds
                with suppress(StoreUnavailable):  # the work goes on; whether the result counts is checked at the end
                    if not await in_threads(self._threads, self._store.renew, claim, lease_seconds, stage, share):
                        return None
            verdict = work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        self._pace.learn(progress, loop.time())
        return JudgedFile(**dict(verdict), filename=claim.name, status=verdict.outcome)

    async def _fail(self, claim: Claim, error: SoundSentryError) -> None:
        """Store an error as the result of a file."""
        document = problem(error) | {"request_id": claim.request_id}
        if await self._finish(claim, {"filename": claim.name, "status": "failed", "error": document}):
            metrics.count_refusal(error)

    async def _finish(self, claim: Claim, result: dict[str, Any]) -> bool:
        """Store the result of a file, and delete its sound. False if the claim was lost."""
        is_written = await self._insist(self._store.finish, claim, result)
        if is_written:
            await in_threads(self._threads, self._sound.delete, claim.job_id, [claim.position])
        return is_written

    async def _send_webhooks(self) -> None:
        """Send the webhooks, several at a time, but only one to a host: a slow receiver delays only its own."""
        async with asyncio.TaskGroup() as group:
            await _repeat(partial(self._send_next_webhook, group))

    async def _send_next_webhook(self, group: asyncio.TaskGroup) -> float:
        """Begin to send the next webhook that is due."""
        job = None
        if len(self._sending) < PARALLEL_WEBHOOKS:
            job = await in_threads(self._threads, self._store.claim_webhook, WEBHOOK_LEASE_SECONDS, list(self._sending))
        if job:
            host = host_of(job.webhook or "")
            self._sending[host] = group.create_task(self._send_webhook(job))
            self._sending[host].add_done_callback(lambda _: self._sending.pop(host))
        elif self._sending:
            await asyncio.wait(self._sending.values(), timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            return POLL_SECONDS
        return 0.0

    async def _send_webhook(self, job: Job) -> None:
        """Send the webhook of a job once, and store what came of it."""
        settings = self._settings
        body = json.dumps(answer.document(job, settings.keep_seconds), allow_nan=False).encode()
        reason: str | None = "webhooks are not configured any more"
        if self._webhooks and job.webhook:
            reason = await self._webhooks.send(job.webhook, job.id, body)
        if reason is None:
            await self._insist(self._store.settle_webhook, job.id, "delivered")
            return
        logger.info("The webhook of job %s failed: %s.", job.id, reason)
        if job.webhook_attempts >= settings.webhook_attempts:
            await self._insist(self._store.settle_webhook, job.id, "failed")
        else:
            pause = pause_seconds(job.webhook_attempts, settings.webhook_first_pause_seconds)
            await self._insist(self._store.settle_webhook, job.id, "pending", pause)

    async def _sweep(self) -> float:
        """Delete jobs that are too old, and sound that no job needs any more. Give up webhooks that are too late."""
        late = time.time() - self._patience
        if self._started_at < late:  # else it may be the service that was down, and not the receiver
            await in_threads(self._threads, self._store.give_up_webhooks, late)
        await in_threads(self._threads, self._store.delete_finished, time.time() - self._settings.keep_seconds)
        await in_threads(self._threads, self._sweep_sound)
        return SWEEP_SECONDS

    async def _count(self) -> float:
        """Record how many jobs are in each state."""
        metrics.show_jobs(await in_threads(self._threads, self._store.counts))
        return COUNT_SECONDS

    def _sweep_sound(self) -> None:
        ages = self._sound.files()
        # In this order, so that a job that is added in between is unknown. In the other order it would be unneeded.
        known = self._store.known([job_id for job_id, _ in ages])
        needed = self._store.unfinished(list(ages))
        for (job_id, position), age in ages.items():
            is_over = job_id in known or age > self._arriving_seconds
            if is_over and (job_id, position) not in needed:
                self._sound.delete(job_id, [position])

    async def _insist(self, write: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Write to the database. If it does not answer, try again until it does."""
        while True:
            try:
                return await in_threads(self._threads, write, *arguments, **options)
            except StoreUnavailable:
                await asyncio.sleep(OUTAGE_SECONDS)


async def _repeat(turn: Callable[[], Awaitable[float]]) -> None:
    """Call `turn` again and again. After each call it waits as long as the call returned."""
    while True:
        try:
            rest = await turn()
        except StoreUnavailable:  # which the store has logged
            rest = OUTAGE_SECONDS
        await asyncio.sleep(rest)
