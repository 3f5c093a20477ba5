"""A deployment that does nothing, in the place of one that serve_config.yaml lists."""

from __future__ import annotations

from ray import serve


@serve.deployment
class Idle:
    """Takes the place of the JobRunner or the JobDecoder where there can be no jobs.

    Serve refuses a file that lists a deployment which the application does not have. It only deploys what is bound:
    `others` are bound for no other reason.
    """

    def __init__(self, *others: object) -> None:
        pass
