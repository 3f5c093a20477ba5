"""The peer that the graph is compared with: a plain FastAPI app around a Detector.

uvicorn tests.peer:app --workers 2
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, UploadFile

from pipeline.detector import Detector


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.detector = Detector.from_config()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request, audio: UploadFile) -> dict[str, object]:
    verdict = await asyncio.to_thread(request.app.state.detector.predict, await audio.read())
    body: dict[str, object] = verdict.model_dump(mode="json")
    return body
