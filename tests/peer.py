"""A plain FastAPI app around a Detector. `tests.bench` compares the graph with it.

uvicorn tests.peer:app --workers 2
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Form, Request, UploadFile

from pipeline.detector import Detector


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.detector = Detector.from_config()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(
    request: Request, audio: UploadFile, use_diarization: Annotated[bool, Form()] = False
) -> dict[str, object]:
    detector: Detector = request.app.state.detector
    verdict = await asyncio.to_thread(detector.predict, await audio.read(), use_diarization=use_diarization)
    body: dict[str, object] = verdict.model_dump(mode="json")
    return body
