"""The ingress: HTTP in front of the graph."""

# No `from __future__ import annotations` here, because FastAPI reads the annotations of the endpoints.

import asyncio
import logging
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import HTTPConnection

from deployments import metrics
from deployments.access import Access, AccessConfig, Limits
from deployments.args import JobSettings
from deployments.embedded import embedded_stages
from deployments.graph import Graph, Progress
from deployments.http import answers, documentation, problems, reports
from deployments.http.admission import Admission, AdmissionConfig
from deployments.http.gate import Gate, asks_for_page
from deployments.http.jobs import EXAMPLES as JOB_EXAMPLES
from deployments.http.jobs import Jobs
from deployments.http.stream import Streams
from deployments.http.uploads import (
    FILE,
    FILES,
    Options,
    Upload,
    body_bytes,
    check_size,
    describe_form,
    read_body,
    read_form,
)
from deployments.memory import Memory
from deployments.results import JudgedFile, problem
from pipeline.audio.formats import ENDINGS, SUPPORTED_FORMATS
from pipeline.config import ROOT, DetectorConfig
from pipeline.errors import SoundSentryError
from pipeline.stream import LiveSettings
from pipeline.types import Label
from pipeline.verdict.answer import MEANINGS, Verdict
from pipeline.verdict.reasons import AnswerWarning, Reason, sentences

logger = logging.getLogger("ray.serve")

PAGE = ROOT / "deployments" / "page"

NO_CACHE = {"Cache-Control": "no-cache"}
"""A browser asks each time whether a file is still the same, so that the page never mixes files of two versions."""

POLICY = "default-src 'self'; frame-ancestors 'none'"
"""The page loads nothing from other hosts, and cannot be shown in a frame."""

CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": ["Authorization", "X-API-Key", "X-Request-ID", "Content-Type", "Idempotency-Key"],
    "expose_headers": ["X-Request-ID", "Retry-After", "Location"],
}
"""The request headers that the sites in `cors_origins` may send, and the response headers that they may read."""


EXAMPLES = {
    "/": answers.HOME,
    "/health": answers.HEALTH,
    "/info": answers.INFO,
    "/usage": answers.USAGE,
    "/predict": answers.PREDICT,
    "/batch-predict": answers.BATCH,
    "/report": answers.REPORT,
    **JOB_EXAMPLES,
}


@serve.deployment
@serve.ingress()
class Ingress:
    """Answers HTTP by sending each recording through the graph.

    Without `stages` it runs the stages itself. It never calls the `runner` of jobs, which takes its work from the
    database; the runner is an argument because Serve only deploys what is bound.
    """

    def __init__(
        self,
        config: DetectorConfig,
        cors_origins: tuple[str, ...],
        access: AccessConfig,
        admission: AdmissionConfig,
        stage_seconds: dict[str, float],
        request_seconds: float,
        live: LiveSettings,
        jobs: JobSettings | None,
        runner: DeploymentHandle[Any] | None,
        stages: dict[str, DeploymentHandle[Any]] | None,
    ) -> None:
        self._config = config
        self._cors_origins = cors_origins
        self._access = Access(access, Limits() if access.keys else None)
        self._pace = admission
        self._admission = Admission(admission)
        self._timeouts_seconds = {"request": request_seconds, **stage_seconds}
        self._graph = Graph(stages or embedded_stages(config), stage_seconds, request_seconds)
        self._live = live
        self._streams = Streams(self._graph, self._access, self._admission, config, live)
        self._jobs = Jobs(jobs, admission, self._admission) if jobs else None
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        self._version: str = project["version"]
        self._memory = Memory()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application. Serve gets it after the constructor has returned."""
        app = FastAPI(
            title="Sound Sentry",
            summary="Is this speech a human's or a machine's?",
            description="Every error is a problem document (RFC 9457); its type ends in its name.",
            version=self._version,
            docs_url=None,  # replaced by our own page, which needs no content delivery network
            redoc_url=None,
            redirect_slashes=False,  # its Location would name whatever host the client did, and http behind a TLS proxy
            middleware=[
                Middleware(Cors, allow_origins=list(self._cors_origins), **CORS),
                # FastAPI's own is outside of Cors: a site on the list could not read that the service failed.
                Middleware(ServerErrorMiddleware, handler=problems.answer_unforeseen),
                Middleware(Gate, access=self._access, origins=self._cors_origins),
            ],
            exception_handlers=problems.HANDLERS,
        )
        app.add_api_route("/", self.home, operation_id="home", responses=answers.HOME)
        app.add_api_route("/docs", self.docs, include_in_schema=False)
        app.add_api_route("/health", self.health, operation_id="health", responses=answers.HEALTH)
        app.add_api_route("/info", self.info, operation_id="info", responses=answers.INFO)
        app.add_api_route("/usage", self.usage, operation_id="usage", responses=answers.USAGE)
        app.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            operation_id="predict",
            responses=answers.PREDICT,
            openapi_extra=PREDICT_FORM,
        )
        app.add_api_route(
            "/batch-predict",
            self.batch_predict,
            methods=["POST"],
            operation_id="batch_predict",
            responses=answers.BATCH,
            openapi_extra=BATCH_FORM,
        )
        report_body, report_schemas = reports.describe()
        app.add_api_route(
            "/report",
            self.report,
            methods=["POST"],
            operation_id="report",
            responses=answers.REPORT,
            response_class=HTMLResponse,
            openapi_extra=report_body,
        )
        app.add_api_websocket_route("/stream", self._streams.serve)
        if self._jobs:
            self._jobs.add_routes(app)
        for route in [route for route in app.routes if isinstance(route, APIRoute)]:
            if route.methods == {"GET"} and route.response_class is not StreamingResponse:
                app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
        app.mount("/page", PageFiles(directory=PAGE))
        app.openapi()["components"]["schemas"].update(report_schemas)
        documentation.correct(app.openapi(), EXAMPLES)
        if self._access.has_keys:
            documentation.ask_for_keys(app.openapi())
        return app

    async def check_health(self) -> None:
        await self._graph.check_embedded()
        self._memory.give_back()

    async def home(self, request: Request) -> Response:
        """Name, version and state of the service. A browser gets the page for recordings."""
        if asks_for_page(request):
            headers = {"Vary": "Accept", "Content-Security-Policy": POLICY, **NO_CACHE}
            return FileResponse(PAGE / "index.html", headers=headers)
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
        """Whether every stage has a working replica. If one has none, the status is 503 with the same body."""
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
        """The model in use, what it computes from a recording, and the limits for recordings."""
        config = self._config
        return JSONResponse(
            {
                **await self._graph.describe_model(),
                "duration_categories": {"very_short": "< 3 s", "short": "3-6 s", "normal": ">= 6 s"},
                "voice_activity": config.voice_activity.model_dump(),
                "diarization": config.diarization.model_dump(),
                "windows": config.windows.model_dump(),
                "decision": config.decision.model_dump(),
                "possible_results": list(get_args(Label)),
                "meanings": MEANINGS,
                "reasons": sentences(Reason),
                "warnings": sentences(AnswerWarning),
                "limits": config.limits.model_dump(),
                "live": self._live.model_dump(),
                "jobs": self._jobs.describe() if self._jobs else None,
                "timeouts_seconds": self._timeouts_seconds,
                "admission": self._pace.model_dump(),
                "supported_formats": list(SUPPORTED_FORMATS),
                "endings": sorted(ENDINGS),
                "timestamp": _now(),
            }
        )

    async def usage(self) -> JSONResponse:
        """What each limited key has left of its limits. It needs a key with the right `admin`."""
        return JSONResponse({"keys": await self._access.usage(), "timestamp": _now()})

    async def predict(self, request: Request) -> JSONResponse:
        """The verdict on one recording, on each speaker in it, and on each moment of it."""
        async with self._form(request, "audio", max_files=1) as ((upload,), options):
            verdict = await self._judge(request, upload, options)
        answer = answers.PredictAnswer(**dict(verdict), filename=upload.name, timestamp=_now())
        return JSONResponse(answer.model_dump(mode="json"))

    async def batch_predict(self, request: Request) -> JSONResponse:
        """A verdict on each of several recordings. If one fails, the others are still answered."""
        async with self._form(request, "files", self._config.limits.max_files) as (uploads, options):
            results = await asyncio.gather(*(self._judge_one_of_many(request, upload, options) for upload in uploads))
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

    async def report(self, request: Request) -> HTMLResponse:
        """An answer of /predict as one HTML file to print or to keep. Nothing is judged again or stored."""
        with self._admission.request(reports.MAX_MIB * 2**20) as arrived, self._admission.arrival():
            return await reports.respond(await read_body(request, reports.MAX_MIB, self._pace, arrived))

    @asynccontextmanager
    async def _form(self, request: Request, field: str, max_files: int) -> AsyncIterator[tuple[list[Upload], Options]]:
        """The files and options of a form, if there is room for its body and for all its recordings."""
        limits = self._config.limits
        with self._admission.request(body_bytes(request, limits, max_files)) as arrived:
            with self._admission.arrival():
                uploads, options = await read_form(request, field, limits, self._pace, max_files, arrived)
            sizes = [len(upload.data) for upload in uploads]
            with self._admission.recordings(sizes, is_slow=options.is_slow):
                yield uploads, options

    async def _judge(self, request: Request, upload: Upload, options: Options) -> Verdict:
        check_size(upload, self._config.limits)
        async with self._admission.recording(len(upload.data), is_slow=options.is_slow):
            progress = Progress(on_length=partial(self._access.spend, request.state.key))
            verdict = await self._graph.predict(upload.data, progress=progress, **options.model_dump())
        metrics.count_verdict(verdict)
        return verdict

    async def _judge_one_of_many(self, request: Request, upload: Upload, options: Options) -> dict[str, Any]:
        try:
            verdict = await self._judge(request, upload, options)
        except SoundSentryError as error:
            return self._failed(request, upload, error)
        except Exception:  # a bug of ours; the other files are answered all the same
            logger.exception("A file of a batch failed.")
            mistake = SoundSentryError("The service failed on this file. There is no verdict on it.")
            return self._failed(request, upload, mistake)
        judged = JudgedFile(**dict(verdict), filename=upload.name, status=verdict.outcome)
        return judged.model_dump(mode="json")

    def _failed(self, request: Request, upload: Upload, error: SoundSentryError) -> dict[str, Any]:
        metrics.count_refusal(error)
        document = problem(error) | {"request_id": problems.request_id(request)}
        return {"filename": upload.name, "status": "failed", "error": document}


class PageFiles(StaticFiles):
    """The files of the page."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(NO_CACHE)
        return response


class Cors(CORSMiddleware):
    """Refuses a preflight request with a problem document, like all other requests."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < HTTPStatus.BAD_REQUEST:
            return response
        connection = HTTPConnection({"type": "http", "headers": request_headers.raw})
        detail = "This site may not ask: its origin is not in `cors_origins`, or its method or a header is not allowed."
        return problems.refuse(connection, response.status_code, detail, {"Vary": "Origin"})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


PREDICT_FORM = describe_form("audio", FILE, Options)
BATCH_FORM = describe_form("files", FILES, Options)
