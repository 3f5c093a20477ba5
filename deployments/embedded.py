"""The stages of the graph in the process that calls them, instead of in replicas of their own."""

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
    """A method of a stage that is called like a method of a handle."""

    method: Callable[..., Any]

    def remote(self, *arguments: Any) -> asyncio.Task[Any]:
        """Start the call and return its future answer. Arguments that are future answers are waited for."""
        task = asyncio.create_task(self._call(arguments))
        # If nobody reads this failure, an earlier stage failed too, and that failure is already reported.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _call(self, arguments: tuple[Any, ...]) -> Any:
        given = [await argument if isinstance(argument, Awaitable) else argument for argument in arguments]
        if inspect.iscoroutinefunction(self.method):
            return await self.method(*given)
        return await asyncio.to_thread(self.method, *given)


@dataclass(frozen=True)
class EmbeddedStage:
    """A stage in this process. Its methods are called like those of a handle: `decode.remote(data, None)`."""

    stage: Any

    def __getattr__(self, name: str) -> EmbeddedMethod:
        return EmbeddedMethod(getattr(self.stage, name))


def embedded_stages(config: DetectorConfig) -> dict[str, EmbeddedStage]:
    """All stages, made and tested in this process. Raises the same errors as the start of a replica."""
    # torch takes seconds to import, and an ingress that calls replicas does not need it.
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
