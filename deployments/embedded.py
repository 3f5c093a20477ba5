"""The stages of the graph in the process that asks for them, in place of replicas of their own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ray.serve import Deployment

from pipeline.config import DetectorConfig


@dataclass(frozen=True)
class EmbeddedMethod:
    """A method of a stage, to be called as one of a handle is."""

    method: Callable[..., Any]

    def remote(self, *arguments: Any) -> asyncio.Task[Any]:
        """The answer to come. Of the arguments those that are still to come are waited for."""
        task = asyncio.create_task(self._call(arguments))
        # A failure that nobody asks for is that of a stage before, which is told by then.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _call(self, arguments: tuple[Any, ...]) -> Any:
        given = [await argument if isinstance(argument, Awaitable) else argument for argument in arguments]
        if inspect.iscoroutinefunction(self.method):
            return await self.method(*given)
        return await asyncio.to_thread(self.method, *given)


@dataclass(frozen=True)
class EmbeddedStage:
    """A stage in this process; its methods are called as through a handle: `decode.remote(data, None)`."""

    stage: Any

    def __getattr__(self, name: str) -> EmbeddedMethod:
        return EmbeddedMethod(getattr(self.stage, name))


def embedded_stages(config: DetectorConfig) -> dict[str, EmbeddedStage]:
    """All stages, made and tried in this process. Raises what a replica's start would."""
    # torch takes seconds to import: an ingress that asks replicas does without.
    from deployments.classifier import Classifier
    from deployments.decoder import Decoder
    from deployments.diarizer import Diarizer
    from deployments.tkan_extractor import TkanExtractor
    from deployments.voice_activity import VoiceActivityDetector

    stages: dict[str, Any] = {}
    for deployment in (Decoder, VoiceActivityDetector, Diarizer, TkanExtractor, Classifier):
        assert isinstance(deployment, Deployment)  # a type checker ignores what decorators return
        assert isinstance(deployment.func_or_class, type)
        stages[deployment.name] = deployment.func_or_class(config)
    stages["Classifier"].reconfigure({"bundle": str(config.bundle)})
    return {name: EmbeddedStage(stage) for name, stage in stages.items()}
