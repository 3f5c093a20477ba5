"""The result of one recording, in the answers of HTTP and of jobs: a verdict or a problem document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import SoundSentryError
from pipeline.verdict.answer import Verdict

FileName = Annotated[str | None, Field(description="Name of the file as it was sent; null if it had none.")]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """An RFC 9457 problem document."""

    type: str = Field(description="The kind of the error, as a link to its row in /docs; `about:blank` for other ones.")
    title: str = Field(description="The error in a few words, the same for all errors of its kind.")
    status: int = Field(description="The status of the answer. In the result of a file, the one for this file alone.")
    detail: str = Field(description="What is wrong with this request, and what to do.")
    request_id: str = Field(
        "", description="The X-Request-ID of the request, for a report; for a file of a job, of the one that sent it."
    )


class FailedFile(Answer):
    filename: FileName
    status: Literal["failed"] = Field(description="Always `failed`: there is no verdict on this file.")
    error: Problem


class JudgedFile(Verdict):
    filename: FileName
    status: Literal["success", "no_speech"] = Field(description="`no_speech` if nobody speaks in it.")


def problem(error: SoundSentryError) -> dict[str, Any]:
    """The problem document of an error. Its type leads to the documentation of the service."""
    return {
        "type": f"/docs#{error.kind()}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
