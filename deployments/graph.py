"""The graph: which stage follows which, how long each may take, and whose fault a failure is."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from pipeline.errors import SoundSentryError, StageFailed, StageTimeout, StageUnavailable
from pipeline.types import OperatingPoint, Speech, Turn, Verdict

logger = logging.getLogger("ray.serve")

UNAVAILABLE = (RayError, BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError)
"""What Ray raises where a replica is gone, or where too many requests wait for one."""

BLAME_SECONDS = 1.0
"""How long a request that failed waits to learn whether it was an earlier stage that failed."""

STATE_SECONDS = 1.0
"""How long what is known of the stages stands, so that a flood of health checks does not reach the controller."""

CONTROLLER_SECONDS = 5.0
"""How long the controller may take to tell the state of the stages."""


class StageState(TypedDict):
    status: Literal["healthy", "down", "unknown"]
    replicas: int


@dataclass(frozen=True)
class Call:
    """One stage at work on a request. `sources` are the calls whose answers it waits for."""

    stage: str
    response: DeploymentResponse[Any]
    sources: tuple[Call, ...]


class Graph:
    """`stages` holds a handle a stage, `timeouts` the seconds that a request may wait for it."""

    def __init__(self, stages: dict[str, DeploymentHandle[Any]], timeouts: dict[str, float]) -> None:
        self._stages = stages
        self._timeouts = timeouts
        self._states: dict[str, StageState] = {}
        self._states_age = -STATE_SECONDS
        self._asking = asyncio.Lock()

    async def predict(
        self,
        data: bytes,
        *,
        use_diarization: bool = False,
        operating_point: OperatingPoint = "balanced",
        explain: bool = False,
    ) -> Verdict:
        """The verdict on one recording, given as the bytes of a file.

        Raises SoundSentryError: an InputError, or the StageError of the stage at fault.
        """
        # The recording is never awaited here: it goes from the Decoder's replica straight to those that need it.
        recording = self._start("Decoder", "decode", data)
        speech_call = self._start("VoiceActivityDetector", "detect", recording)
        turns_call = self._start("Diarizer", "diarize", recording) if use_diarization else None
        calls = [recording, speech_call, *([turns_call] if turns_call else [])]
        try:
            speech: Speech = await self._result(speech_call)
            if not speech.segments:
                if turns_call:
                    _cancel(turns_call)
                no_speech: Verdict = await self._result(self._start("Classifier", "no_speech", speech, use_diarization))
                return no_speech
            turns: tuple[Turn, ...] | None = await self._result(turns_call) if turns_call else None
            features = self._start("TkanExtractor", "extract", recording, speech, turns)
            classified = self._start("Classifier", "classify", features, operating_point, explain)
            calls += [features, classified]
            verdict: Verdict = await self._result(classified)
            return verdict
        except BaseException:
            for call in calls:
                _cancel(call)
            raise

    async def describe_model(self) -> dict[str, Any]:
        description: dict[str, Any] = await self._result(self._start("Classifier", "describe"))
        return description

    async def states(self) -> dict[str, StageState]:
        """Which stages have a replica that serves, as far as the controller knows.

        It has every replica try itself on a recording of one second, each `health_check_period_s`. A stage that is
        only busy is healthy.
        """
        async with self._asking:
            if time.monotonic() - self._states_age > STATE_SECONDS:
                self._states = await self._ask_controller()
                self._states_age = time.monotonic()
            return self._states

    async def _ask_controller(self) -> dict[str, StageState]:
        application = serve.get_replica_context().app_name
        try:
            status = await asyncio.wait_for(asyncio.to_thread(serve.status), CONTROLLER_SECONDS)
            deployments = status.applications[application].deployments
        except Exception:
            logger.exception("The Serve controller did not tell the state of the stages.")
            return {stage: {"status": "unknown", "replicas": 0} for stage in self._stages}
        states: dict[str, StageState] = {}
        for stage in self._stages:
            replicas = deployments[stage].replica_states.get("RUNNING", 0)
            states[stage] = {"status": "healthy" if replicas else "down", "replicas": replicas}
        return states

    def _start(self, stage: str, method: str, *arguments: Any) -> Call:
        """Send `arguments` to a stage; those that are Calls become what these answer, on the replica itself."""
        sent = [argument.response if isinstance(argument, Call) else argument for argument in arguments]
        sources = tuple(argument for argument in arguments if isinstance(argument, Call))
        return Call(stage, getattr(self._stages[stage], method).remote(*sent), sources)

    async def _result(self, call: Call) -> Any:
        """What `call` answers. Raises the SoundSentryError of the first stage at fault."""
        try:
            async with asyncio.timeout(self._limit_seconds(call)):
                return await call.response
        except Exception as error:
            for source in call.sources:
                await self._raise_if_at_fault(source, late=_is_late(error))
            raise self._explain(call.stage, error) from error

    async def _raise_if_at_fault(self, call: Call, late: bool) -> None:
        try:
            async with asyncio.timeout(BLAME_SECONDS):
                await call.response
        except Exception as error:
            if late or not _is_late(error):
                raise self._explain(call.stage, error) from error

    def _limit_seconds(self, call: Call) -> float:
        return self._timeouts[call.stage] + sum(self._limit_seconds(source) for source in call.sources)

    def _explain(self, stage: str, error: Exception) -> SoundSentryError:
        """What the failure of a stage means to the user."""
        cause: Any = error
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        if isinstance(cause, SoundSentryError):
            return cause
        logger.error("The %s failed: %s", stage, error)
        if _is_late(error):
            return StageTimeout(
                f"The {stage} did not answer within {self._timeouts[stage]:g} seconds. "
                "Try again later or send a shorter recording."
            )
        if isinstance(cause, UNAVAILABLE):
            return StageUnavailable(f"The {stage} is down or has too many requests waiting. Try again in a while.")
        return StageFailed(f"The {stage} failed on this recording. Nothing can be said about it.")


def _cancel(call: Call) -> None:
    """Let a stage stop, if it still can. A call that had failed raises its error here too, which is known by now."""
    with suppress(Exception):
        call.response.cancel()


def _is_late(error: Exception) -> bool:
    """Whether this is the end of our own patience, and not a TimeoutError that a stage raised."""
    return isinstance(error, TimeoutError) and not isinstance(error, RayTaskError)
