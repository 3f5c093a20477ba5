"""The ingress: HTTP in front of the graph."""

# FastAPI reads the annotations of the endpoints: no `from __future__ import annotations` here.

import asyncio
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from deployments import metrics
from deployments.graph import Graph
from deployments.http import answers, documentation
from deployments.http.uploads import Options, Upload, check_size, read_form
from pipeline.audio.formats import SUPPORTED_FORMATS
from pipeline.config import ROOT, DetectorConfig
from pipeline.errors import InputError, SoundSentryError
from pipeline.types import Label
from pipeline.verdict.answer import Verdict
from pipeline.verdict.reasons import AnswerWarning, Reason, sentences

PAGE = ROOT / "deployments" / "page"

POLICY = "default-src 'self'"
"""The page needs nothing from elsewhere, and may get nothing."""

RETRY_AFTER_SECONDS = 5


EXAMPLES = {
    "/": answers.HOME,
    "/health": answers.HEALTH,
    "/info": answers.INFO,
    "/predict": answers.PREDICT,
    "/batch-predict": answers.BATCH,
}


@serve.deployment
@serve.ingress()
class Ingress:
    """Answers HTTP by sending each recording through the graph."""

    def __init__(
        self,
        config: DetectorConfig,
        cors_origins: tuple[str, ...],
        stage_seconds: dict[str, float],
        request_seconds: float,
        stages: dict[str, DeploymentHandle[Any]],
    ) -> None:
        self._config = config
        self._cors_origins = cors_origins
        self._timeouts_seconds = {"request": request_seconds, **stage_seconds}
        self._graph = Graph(stages, stage_seconds, request_seconds)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        self._version: str = project["version"]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application; Serve asks for it once the constructor has returned."""
        app = FastAPI(
            title="Sound Sentry",
            summary="Is this speech a human's or a machine's?",
            description="Every error is a problem document (RFC 9457); its type ends in its name.",
            version=self._version,
            docs_url=None,  # in favour of our own, which needs no content delivery network
            redoc_url=None,
            middleware=[
                Middleware(CORSMiddleware, allow_origins=list(self._cors_origins), allow_methods=["GET", "POST"])
            ],
            exception_handlers={
                SoundSentryError: _answer_error,
                HTTPException: _answer_http_error,
                ClientDisconnect: _answer_nobody,
                Exception: _answer_unforeseen,
            },
        )
        app.add_api_route("/", self.home, responses=answers.HOME)
        app.add_api_route("/docs", self.docs, include_in_schema=False)
        app.add_api_route("/health", self.health, responses=answers.HEALTH)
        app.add_api_route("/info", self.info, responses=answers.INFO)
        app.add_api_route(
            "/predict", self.predict, methods=["POST"], responses=answers.PREDICT, openapi_extra=PREDICT_FORM
        )
        app.add_api_route(
            "/batch-predict",
            self.batch_predict,
            methods=["POST"],
            responses=answers.BATCH,
            openapi_extra=BATCH_FORM,
        )
        app.mount("/page", StaticFiles(directory=PAGE))
        # The document that FastAPI makes, and keeps, lacks every null: in an example null says something.
        for path, operations in app.openapi()["paths"].items():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    for media_type, content in response["content"].items():
                        content.update(EXAMPLES[path].get(int(status), {}).get("content", {}).get(media_type, {}))
        return app

    async def home(self, request: Request) -> Response:
        """Name, version and state of the service. A browser gets the page on which to drop a recording."""
        if "text/html" in request.headers.get("accept", ""):
            return FileResponse(PAGE / "index.html", headers={"Vary": "Accept", "Content-Security-Policy": POLICY})
        return JSONResponse(
            {
                "service": "Sound Sentry",
                "version": self._version,
                "status": "online",
                "timestamp": _now(),
            },
            headers={"Vary": "Accept"},
        )

    async def docs(self) -> Response:
        return HTMLResponse(documentation.page())

    async def health(self) -> JSONResponse:
        """Whether every stage has a replica that works; 503 with the same shape while one has none."""
        stages = await self._graph.states()
        healthy = all(state["status"] == "healthy" for state in stages.values())
        return JSONResponse(
            {
                "status": "healthy" if healthy else "unhealthy",
                "classifier_loaded": stages["Classifier"]["status"] == "healthy",
                "timestamp": _now(),
                "stages": stages,
            },
            status_code=HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    async def info(self) -> JSONResponse:
        """The model in use, what it computes from a recording, and what may be sent."""
        config = self._config
        return JSONResponse(
            {
                **await self._graph.describe_model(),
                "duration_categories": {"very_short": "< 3 s", "short": "3-6 s", "normal": ">= 6 s"},
                "voice_activity": config.voice_activity.model_dump(),
                "diarization": config.diarization.model_dump(),
                "windows": config.windows.model_dump(),
                "possible_results": list(get_args(Label)),
                "reasons": sentences(Reason),
                "warnings": sentences(AnswerWarning),
                "limits": config.limits.model_dump(),
                "timeouts_seconds": self._timeouts_seconds,
                "supported_formats": list(SUPPORTED_FORMATS),
                "timestamp": _now(),
            }
        )

    async def predict(self, request: Request) -> JSONResponse:
        """The verdict on one recording, on each speaker in it, and on each moment of it."""
        uploads, options = await read_form(request, "audio", self._config.limits, max_files=1)
        verdict = await self._judge(uploads[0], options)
        answer = answers.PredictAnswer(**dict(verdict), filename=uploads[0].name, timestamp=_now())
        return JSONResponse(answer.model_dump(mode="json"))

    async def batch_predict(self, request: Request) -> JSONResponse:
        """A verdict on each of several recordings; each succeeds or fails by itself."""
        limits = self._config.limits
        uploads, options = await read_form(request, "files", limits, max_files=limits.max_files)
        results = await asyncio.gather(*(self._judge_one_of_many(upload, options) for upload in uploads))
        failed = sum(result["status"] == "failed" for result in results)
        return JSONResponse(
            {
                "timestamp": _now(),
                "total_files": len(results),
                "successful": len(results) - failed,
                "failed": failed,
                "results": results,
            }
        )

    async def _judge(self, upload: Upload, options: Options) -> Verdict:
        check_size(upload, self._config.limits)
        verdict = await self._graph.predict(upload.data, **options.model_dump())
        metrics.count_verdict(verdict)
        return verdict

    async def _judge_one_of_many(self, upload: Upload, options: Options) -> dict[str, Any]:
        try:
            verdict = await self._judge(upload, options)
        except SoundSentryError as error:
            metrics.count_refusal(error)
            return {"filename": upload.name, "status": "failed", "error": answers.problem(error)}
        judged = answers.JudgedFile(**dict(verdict), filename=upload.name, status=verdict.outcome)
        return judged.model_dump(mode="json")


async def _answer_error(_: Request, error: SoundSentryError) -> JSONResponse:
    metrics.count_refusal(error)
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return _problem_response(answers.problem(error), retry)


async def _answer_http_error(_: Request, error: HTTPException) -> JSONResponse:
    """What Starlette refuses: an unknown path, a method that the path does not have."""
    phrase = HTTPStatus(error.status_code).phrase
    document = {
        "type": "about:blank",
        "title": phrase,
        "status": error.status_code,
        "detail": f"{phrase}: see /docs for what can be asked.",
    }
    return _problem_response(document, error.headers)


async def _answer_nobody(_: Request, error: ClientDisconnect) -> JSONResponse:
    """The sender of a form hung up: nobody reads this."""
    return _problem_response(answers.problem(InputError("The form ended early. Send it again.")))


async def _answer_unforeseen(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours; Serve logs its stack."""
    problem = SoundSentryError("The service failed on this request. Nothing can be said about it.")
    metrics.count_refusal(problem)
    return _problem_response(answers.problem(problem))


def _problem_response(document: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(document, document["status"], headers=headers, media_type="application/problem+json")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _form(field: str, files: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI request body of an endpoint that reads its form by itself."""
    properties = {field: files, **Options.model_json_schema()["properties"]}
    schema = {"type": "object", "required": [field], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


FILE = {"type": "string", "format": "binary"}
PREDICT_FORM = _form("audio", FILE)
BATCH_FORM = _form("files", {"type": "array", "items": FILE})
