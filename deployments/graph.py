"""The graph: the order of the stages, how long each may take, and which stage caused a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, TypeVar

from ray import ObjectRef, serve
from ray.exceptions import ObjectLostError, RayActorError, RayError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ServeStatus

from deployments import metrics
from deployments.decoder import ChannelReference
from deployments.embedded import EmbeddedStage
from deployments.refusals import unwrap
from pipeline.errors import OtherFeatures, RequestTimeout, SoundSentryError, StageFailed, StageTimeout, StageUnavailable
from pipeline.types import Channels, Features, FeatureSource, OperatingPoint, Recording, SpeakerCount, Speech, Turn
from pipeline.verdict.answer import Verdict
from pipeline.verdict.channels import JudgedChannel, merge_channels

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

Stages = Mapping[str, DeploymentHandle[Any] | EmbeddedStage]
"""The stages by their names: handles of replicas, or stages in this process."""

Response = DeploymentResponse[Any] | asyncio.Task[Any]
"""The future answer of a stage."""

UNAVAILABLE = (RayError, BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError)
"""The errors that Ray raises if a replica is gone, or if too many requests wait for one."""

LOST = (RayActorError, WorkerCrashedError, ObjectLostError, ReplicaUnavailableError)
"""The errors that Ray raises if a replica died while it worked on the request."""

BLAME_SECONDS = 1.0
"""How long a failed request waits to find out whether an earlier stage failed."""

STATE_SECONDS = 1.0
"""How long a known state of the stages is used again, so that many health checks do not burden the controller."""

CONTROLLER_SECONDS = 5.0
"""How long the controller may take to report the state of the stages."""

WORKING_STATES = ("RUNNING", "UPDATING", "PENDING_MIGRATION", "RECOVERING")
"""States of replicas that take requests. One changes its bundle, one waits until its node is empty, and one was found
by a controller that was started again."""

EXCHANGES = 8
"""How often a request has its features extracted again because the Classifier serves another bundle by now. While a
bundle is exchanged, one replica of the Classifier may have the old one and another the new one."""


class StageState(TypedDict):
    status: Literal["healthy", "down", "unknown"]
    replicas: int


@dataclass(frozen=True)
class Call:
    """One stage at work on a request. `sources` are the calls whose answers it waits for."""

    stage: str
    response: Response
    sources: tuple[Call, ...]


@dataclass
class Wanted:
    """The features that the Classifier took last. None: those of the bundle of the configuration."""

    source: FeatureSource | None = None


@dataclass
class Progress:
    """How far a request is.

    `stages`: the stages it has waited for, each with the time, by the event loop's clock, when the wait began.
    `audio_seconds`: the length of the recording; None until it is known. `on_length` is called once with it. An error
    that it raises ends the request.
    """

    stages: list[tuple[str, float]] = field(default_factory=list)
    audio_seconds: float | None = None
    on_length: Callable[[float], Awaitable[None]] | None = None

    async def set_length(self, audio_seconds: float) -> None:
        """Set the length of the recording in seconds. A second call, for another channel or another try, is no news."""
        is_first, self.audio_seconds = self.audio_seconds is None, audio_seconds
        if is_first and self.on_length:
            await self.on_length(audio_seconds)


class Graph:
    """Sends requests through the stages.

    `stages` holds a handle for each stage, or the stages themselves. `stage_seconds` limits the time of each stage from
    its input to its answer, including the queue. `request_seconds` limits the time of all stages together.
    """

    def __init__(self, stages: Stages, stage_seconds: dict[str, float], request_seconds: float) -> None:
        self._stages = stages
        self._stage_seconds = stage_seconds
        self._request_seconds = request_seconds
        self._wanted = Wanted()
        self._states: dict[str, StageState] = {}
        self._states_age = -STATE_SECONDS
        self._asking = asyncio.Lock()
        # The question to the controller has a thread of its own: it waits for no other work, and it is not asked again
        # before it is answered, so that a controller that hangs does not keep a thread for each health check.
        self._thread = ThreadPoolExecutor(1, "serve-status")
        self._question: asyncio.Future[ServeStatus] | None = None

    async def predict(
        self,
        data: bytes,
        *,
        use_diarization: bool = False,
        operating_point: OperatingPoint = "balanced",
        explain: bool = False,
        channels: Channels = "mix",
        track: int | None = None,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        progress: Progress | None = None,
    ) -> Verdict:
        """The verdict on one recording, given as the bytes of a file. `progress` is updated during the work.

        Stages keep no state, so a request whose replica died is sent through the graph once more. It is not sent a
        third time, because the request itself may kill replicas. Raises SoundSentryError: an InputError, the StageError
        of the stage that failed, or RequestTimeout.
        """
        count = SpeakerCount(num_speakers, min_speakers, max_speakers).when(use_diarization)
        arguments = (data, track, count if use_diarization else None, operating_point, explain)
        async with self._request(progress) as request:
            judge = request.judge_channels if channels == "split" else request.judge
            try:
                return await judge(*arguments)
            except StageUnavailable as error:
                if not isinstance(unwrap(error.__cause__), LOST):
                    raise
            request.cancel()
            return await judge(*arguments)

    async def extract(self, data: bytes) -> Features | Speech:
        """The features of the speech in a recording, or its empty Speech if nobody speaks. Raises as `predict` does."""
        async with self._request() as request:
            recording = request.start("Decoder", "decode", data, None)
            segmented = request.start_segmenting(recording, None)
            segmented.since = await request.answered(recording)
            await request.segment(segmented)
            if not segmented.speech.segments:
                return segmented.speech
            features: Features = await request.result(request.start_extracting(segmented))
            return features

    async def classify(self, content: Features | Speech, operating_point: OperatingPoint, among: int) -> Verdict:
        """The verdict on the result of `extract` for an update of a stream, on one of `among` channels. Raises as
        `predict` does.

        Raises OtherFeatures if another bundle is served by now. `extract` then gives the features for it.
        """
        async with self._request() as request:
            if isinstance(content, Speech):
                call = request.start("Classifier", "no_speech", content, False)
            else:
                call = request.start("Classifier", "classify", content, operating_point, False, among, True)
            verdict: Verdict
            try:
                verdict = await request.result(call)
            except OtherFeatures as error:
                self._wanted.source = error.source
                raise
            return verdict

    async def describe_model(self) -> dict[str, Any]:
        async with self._request() as request:
            description: dict[str, Any] = await request.result(request.start("Classifier", "describe"))
            return description

    @asynccontextmanager
    async def _request(self, progress: Progress | None = None) -> AsyncIterator[_Request]:
        """A request, with a time limit for all its stages. If it ends early, its running calls are cancelled."""
        request = _Request(self._stages, self._stage_seconds, self._wanted, progress or Progress())
        try:
            async with asyncio.timeout(self._request_seconds) as patience:
                yield request
        except BaseException as error:
            request.cancel()
            if patience.expired():
                raise RequestTimeout(
                    f"The request was not answered within {self._request_seconds:g} seconds: it was waiting for the "
                    f"{request.progress.stages[-1][0]}. Send a shorter recording, or try again later."
                ) from error
            raise

    async def check_embedded(self) -> None:
        """Raises if a stage in this process does not work."""
        for stage in self._stages.values():
            if isinstance(stage, EmbeddedStage):
                await stage.check_health.remote()

    async def states(self) -> dict[str, StageState]:
        """Which stages have a working replica, as far as the controller knows.

        Every `health_check_period_s` the controller makes each replica test itself on a recording of one second. A
        stage that is only busy is healthy.
        """
        async with self._asking:
            if time.monotonic() - self._states_age > STATE_SECONDS:
                self._states = await self._ask_controller()
                self._states_age = time.monotonic()
            return self._states

    async def _ask_controller(self) -> dict[str, StageState]:
        application = serve.get_replica_context().app_name
        try:
            if self._question is None or self._question.done():
                self._question = asyncio.get_running_loop().run_in_executor(self._thread, serve.status)
                # An answer that comes too late may be an error. Nobody reads it then.
                self._question.add_done_callback(lambda done: done.cancelled() or done.exception())
            status = await asyncio.wait_for(asyncio.shield(self._question), CONTROLLER_SECONDS)
            deployments = status.applications[application].deployments
        except Exception:
            logger.exception("The Serve controller did not report the state of the stages.")
            return {stage: {"status": "unknown", "replicas": 0} for stage in self._stages}
        states: dict[str, StageState] = {}
        for stage, handle in self._stages.items():
            deployment = "Ingress" if isinstance(handle, EmbeddedStage) else stage
            # Its keys are declared as an enumeration, but they are strings.
            counts: Mapping[str, int] = deployments[deployment].replica_states  # type: ignore[assignment]
            replicas = sum(counts.get(state, 0) for state in WORKING_STATES)
            states[stage] = {"status": "healthy" if replicas else "down", "replicas": replicas}
        return states


class _Request:
    """One request on its way through the graph."""

    def __init__(self, stages: Stages, stage_seconds: dict[str, float], wanted: Wanted, progress: Progress) -> None:
        self.progress = progress
        self._wanted = wanted
        self._stages = stages
        self._stage_seconds = stage_seconds
        self._calls: list[Call] = []

    async def judge(
        self,
        data: bytes,
        track: int | None,
        count: SpeakerCount | None,
        operating_point: OperatingPoint,
        explain: bool,
    ) -> Verdict:
        # The recording is not fetched here. It goes directly from the Decoder's replica to the stages that need it.
        recording = self.start("Decoder", "decode", data, track)
        segmented = self.start_segmenting(recording, count)
        segmented.since = await self.answered(recording)
        await self.segment(segmented)
        return await self.classify(segmented, operating_point, explain, among=1)

    async def judge_channels(
        self,
        data: bytes,
        track: int | None,
        count: SpeakerCount | None,
        operating_point: OperatingPoint,
        explain: bool,
    ) -> Verdict:
        """Run the stages for all channels in parallel. The channels stay where the Decoder put them."""
        found: list[ChannelReference] = await self.result(self.start("Decoder", "decode_channels", data, track))
        since = asyncio.get_running_loop().time()
        by_channel = {c.name: self.start_segmenting(c.recording, count) for c in found if c.recording}
        for channel in by_channel.values():
            channel.since = since
        await asyncio.gather(*(self.segment(channel) for channel in by_channel.values()))
        among = sum(bool(channel.speech.segments) for channel in by_channel.values())
        verdicts = await asyncio.gather(
            *(self.classify(channel, operating_point, explain, among) for channel in by_channel.values())
        )
        judged = [
            JudgedChannel(name, channel.speech, verdict)
            for (name, channel), verdict in zip(by_channel.items(), verdicts, strict=True)
        ]
        return merge_channels({channel.name: channel.note for channel in found}, judged)

    def start_segmenting(self, recording: Call | ObjectRef[Recording], count: SpeakerCount | None) -> _Segmented:
        """Start to find speech, and also turns if `count` is given."""
        speech_call = self.start("VoiceActivityDetector", "detect", recording)
        turns_call = self.start("Diarizer", "diarize", recording, count) if count is not None else None
        return _Segmented(recording, speech_call, turns_call, count)

    async def segment(self, segmented: _Segmented) -> None:
        segmented.speech = await self.result(segmented.speech_call, segmented.since)
        await self.progress.set_length(segmented.speech.duration_seconds)
        if segmented.turns_call and segmented.count is not None and segmented.speech.segments:
            segmented.turns = turns = await self.result(segmented.turns_call, segmented.since)
            segmented.speech = segmented.speech.check(segmented.count, turns)
        elif segmented.turns_call:
            _cancel(segmented.turns_call)

    async def classify(
        self, segmented: _Segmented, operating_point: OperatingPoint, explain: bool, among: int
    ) -> Verdict:
        verdict: Verdict
        if not segmented.speech.segments:
            verdict = await self.result(
                self.start("Classifier", "no_speech", segmented.speech, segmented.turns_call is not None)
            )
            return verdict
        for _ in range(EXCHANGES):
            source = self._wanted.source
            features = self.start_extracting(segmented)
            classified = self.start("Classifier", "classify", features, operating_point, explain, among)
            try:
                verdict = await self.result(classified, await self.answered(features))
                break
            except OtherFeatures as error:
                self._wanted.source = error.source
        else:
            raise StageUnavailable("The model is being exchanged for another one. Try again in a while.")
        if not explain:
            return verdict
        occluded = self.start("TkanExtractor", "occlude", segmented.recording, features, verdict, source)
        explained = self.start("Classifier", "explain_bands", verdict, features, occluded)
        verdict = await self.result(explained, await self.answered(occluded))
        return verdict

    def start_extracting(self, segmented: _Segmented) -> Call:
        """Start to extract the features that the Classifier wants."""
        return self.start(
            "TkanExtractor", "extract", segmented.recording, segmented.speech, segmented.turns, self._wanted.source
        )

    def cancel(self) -> None:
        """Cancel all calls that are still running."""
        for call in self._calls:
            _cancel(call)

    def start(self, stage: str, method: str, *arguments: Any) -> Call:
        """Send `arguments` to a stage. An argument that is a Call is replaced by its answer, on the replica itself."""
        sent = [argument.response if isinstance(argument, Call) else argument for argument in arguments]
        sources = tuple(argument for argument in arguments if isinstance(argument, Call))
        call = Call(stage, getattr(self._stages[stage], method).remote(*sent), sources)
        self._calls.append(call)
        return call

    async def result(self, call: Call, since: float | None = None) -> Any:
        """The answer of `call`. `since` is the time when its input was ready; None means now.

        Raises the SoundSentryError of the first stage that failed.
        """
        return await self._wait(call, call.response, since)

    async def answered(self, call: Call) -> float:
        """Wait until `call` has an answer or an error, without fetching it. Returns the time."""
        await self._wait(call, _is_there(call.response))
        return asyncio.get_running_loop().time()

    async def _wait(self, call: Call, answer: Awaitable[T], since: float | None = None) -> T:
        seconds = self._stage_seconds[call.stage]
        clock = asyncio.get_running_loop().time
        start = clock() if since is None else since
        if not self.progress.stages or self.progress.stages[-1][0] != call.stage:
            self.progress.stages.append((call.stage, clock()))
        try:
            async with asyncio.timeout_at(start + seconds) as patience:
                answered = await answer
        except Exception as error:
            if patience.expired():
                logger.error("The %s did not answer within %g s.", call.stage, seconds)
                raise StageTimeout.after(seconds, call.stage) from error
            for source in call.sources:
                await _raise_if_at_fault(source)
            raise _explain(call.stage, error) from error
        metrics.observe_stage(call.stage, clock() - start)
        return answered


@dataclass
class _Segmented:
    """A recording whose speech and turns are being found: the calls for them, and their results.

    `since` is the time when the calls could begin.
    """

    recording: Call | ObjectRef[Recording]
    speech_call: Call
    turns_call: Call | None
    count: SpeakerCount | None
    since: float | None = None
    speech: Speech = field(init=False)
    turns: tuple[Turn, ...] | None = None


async def _is_there(response: Response) -> None:
    """Wait for a response without fetching it. Fetching would copy a long recording to this node."""
    if isinstance(response, asyncio.Task):
        await asyncio.wait((response,))
        return
    reference = await response._to_object_ref()
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()

    def set_ready(_: BaseException | None) -> None:
        loop.call_soon_threadsafe(ready.set)

    stop_waiting = reference._on_ready(set_ready)
    try:
        await ready.wait()
    finally:
        stop_waiting()


async def _raise_if_at_fault(call: Call) -> None:
    try:
        async with asyncio.timeout(BLAME_SECONDS) as patience:
            await call.response
    except Exception as error:
        if not patience.expired():
            raise _explain(call.stage, error) from error


def _explain(stage: str, error: Exception) -> SoundSentryError:
    """The error for the user when a stage failed."""
    cause = unwrap(error)
    if isinstance(cause, SoundSentryError):
        return cause
    logger.error("The %s failed: %s", stage, error)
    if isinstance(cause, UNAVAILABLE):
        return StageUnavailable(f"The {stage} is down or has too many requests waiting. Try again in a while.")
    return StageFailed(f"The {stage} failed on this recording. There is no verdict on it.")


def _cancel(call: Call) -> None:
    """Cancel a call if it is still running. A failed call raises its error here again, which is already known."""
    with suppress(Exception):
        call.response.cancel()
