"""The page /docs: the OpenAPI document, and each problem by its name. The type of a problem is a link to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi.openapi.docs import get_swagger_ui_html

from deployments.access import OPEN_PATHS
from pipeline.errors import SoundSentryError


def page() -> str:
    """The page as HTML. It needs nothing from other hosts."""
    swagger = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Sound Sentry",
        swagger_js_url="/page/vendor/swagger-ui-bundle.js",
        swagger_css_url="/page/vendor/swagger-ui.css",
        swagger_favicon_url="/page/icon.svg",
    )
    rows = "".join(
        f'<tr id="{kind.kind()}"><td><code>{kind.kind()}</code></td><td>{kind.status:d}</td><td>{kind.title}</td></tr>'
        for kind in kinds()
    )
    head = "<tr><th>type ends in</th><th>status</th><th>title</th></tr>"
    problems = f"<h2>Problems</h2><table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    section = f'<section class="swagger-ui"><div class="wrapper">{problems}</div></section>'
    return bytes(swagger.body).decode().replace("</body>", f"{section}</body>")


def correct(document: dict[str, Any], answers: Mapping[str, Mapping[int | str, Any]]) -> None:
    """Correct FastAPI's OpenAPI document. `answers` has the responses of each path, by status."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]  # FastAPI's own, but any text is a job id
            # FastAPI leaves every null out, but a null in an example has a meaning.
            for status, response in operation["responses"].items():
                for media_type, content in response["content"].items():
                    content.update(answers[path].get(int(status), {}).get("content", {}).get(media_type, {}))
    for name in ("HTTPValidationError", "ValidationError"):  # of the responses that are deleted above
        document["components"]["schemas"].pop(name, None)


def ask_for_keys(document: dict[str, Any]) -> None:
    """Say in the OpenAPI document how a request names its key, and which paths need none."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    document["security"] = [{"bearer": []}, {"header": []}]
    for path in OPEN_PATHS:
        for operation in document["paths"][path].values():
            operation["security"] = []


def kinds(kind: type[SoundSentryError] = SoundSentryError) -> Iterator[type[SoundSentryError]]:
    """An error class and all its subclasses."""
    yield kind
    for derived in kind.__subclasses__():
        yield from kinds(derived)
