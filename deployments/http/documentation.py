"""The page /docs: the OpenAPI document, and each problem by its name. The type of a problem is a link to it."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.openapi.docs import get_swagger_ui_html

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


def kinds(kind: type[SoundSentryError] = SoundSentryError) -> Iterator[type[SoundSentryError]]:
    """An error class and all its subclasses."""
    yield kind
    for derived in kind.__subclasses__():
        yield from kinds(derived)
