from __future__ import annotations

import asyncio
import inspect
import itertools
import selectors
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments import graph as module
from deployments.decoder import ChannelReference
from deployments.graph import EXCHANGES, Graph
from pipeline.errors import (
    BundleError,
    OtherFeatures,
    RequestTimeout,
    SoundSentryError,
    StageFailed,
    StageTimeout,
    StageUnavailable,
    UnsupportedFormat,
)
from pipeline.types import Channels, FeatureSource, Recording, Segment, Speech, Waveform
from pipeline.verdict.answer import EXAMPLES

STAGES = ("Decoder", "VoiceActivityDetector", "Diarizer", "TkanExtractor", "Classifier")
RECORDING = Recording(Waveform(np.zeros(16_000, np.float32)), "wav")
SPEECH = Speech((Segment(0.0, 1.0),), 1.0, "wav")
SILENCE = Speech((), 1.0, "wav")


class Answer:
    """Like the result of a handle's `.remote()`: its arguments are resolved first, and it raises their errors."""

    def __init__(self, arguments: tuple[Any, ...], work: Callable[..., Any], seconds: float) -> None:
        self.task = asyncio.ensure_future(self._work(arguments, work, seconds))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.cancelled = False

    async def _work(self, arguments: tuple[Any, ...], work: Callable[..., Any], seconds: float) -> Any:
        resolved = [await item.task if isinstance(item, Answer) else item for item in arguments]
        await asyncio.sleep(seconds)
        answer = work(*resolved)
        return await answer if inspect.isawaitable(answer) else answer

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.shield(self.task).__await__()

    async def _to_object_ref(self) -> Answer:
        return self

    def _on_ready(self, callback: Callable[[None], object]) -> Callable[[], None]:
        self.task.add_done_callback(lambda _: callback(None))
        return lambda: None

    def cancel(self) -> None:
        self.cancelled = True
        if self.task.done():
            self.task.result()  # Serve raises here, too, if a request failed before it reached a replica
        self.task.cancel()


class Handle:
    """A stage. Each of its methods waits for `seconds` and then does `work`."""

    def __init__(self, work: Callable[..., Any], seconds: float = 0.0) -> None:
        self.work, self.seconds = work, seconds
        self.answers: list[Answer] = []

    def __getattr__(self, method: str) -> Handle:
        return self

    def remote(self, *arguments: Any) -> Answer:
        self.answers.append(Answer(arguments, self.work, self.seconds))
        return self.answers[-1]


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*_: Any) -> Any:
        raise error

    return work


def raised_by_a_stage(error: Exception) -> BaseException:
    raised: BaseException = RayTaskError("handle_request", "stack", error).as_instanceof_cause()
    return raised


class Failing:
    """Work that fails a number of times before it succeeds."""

    def __init__(self, error: BaseException, times: int, answer: Any) -> None:
        self.error, self.times, self.answer = error, times, answer
        self.calls = 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.answer


STAGE_SECONDS = 0.4
FEATURES = ("features", "balanced", False, 1)
"""What the Classifier gets from the other stand-ins."""


class Hurried(selectors.DefaultSelector):
    """Does not wait for the next timer, but sets its clock to the time when it is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout if timeout is None else 0)
        if not found and timeout:
            self.now += timeout
        return found


class HurriedLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own. A wait ends at once and moves this clock; computing does not move it. So a
    busy machine exceeds no time limit."""

    def __init__(self) -> None:
        self._clock = Hurried()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(
    use_diarization: bool = False,
    request_seconds: float = 30.0,
    channels: Channels = "mix",
    **changed: Any,
) -> tuple[Any, dict[str, Handle]]:
    """Send a recording through a graph. Its stages are simple stand-ins, except those in `changed`."""

    async def predict() -> tuple[Any, dict[str, Handle]]:
        stages: dict[str, Any] = {
            "Decoder": Handle(lambda *_: RECORDING),
            "VoiceActivityDetector": Handle(lambda recording: SPEECH),
            "Diarizer": Handle(lambda recording, count: ()),
            "TkanExtractor": Handle(lambda *_: "features"),
            "Classifier": Handle(lambda *arguments: arguments),
        } | changed
        try:
            graph = Graph(stages, dict.fromkeys(STAGES, STAGE_SECONDS), request_seconds)
            return await graph.predict(b"", use_diarization=use_diarization, channels=channels), stages
        except SoundSentryError as error:
            return error, stages

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        return runner.run(predict())


def test_the_classifier_gets_the_features() -> None:
    assert run()[0] == FEATURES


def test_the_diarizer_runs_when_asked() -> None:
    assert not run()[1]["Diarizer"].answers
    assert len(run(use_diarization=True)[1]["Diarizer"].answers) == 1


def two_channels(*_: Any) -> list[ChannelReference]:
    """The Decoder's answer if channels are judged one by one. It has recordings instead of references to recordings."""
    first, second = (replace(RECORDING, original_format=name) for name in ("first", "second"))
    return [
        ChannelReference("CHANNEL_1", first, None),
        ChannelReference("CHANNEL_2", None, "silent"),
        ChannelReference("CHANNEL_3", second, None),
    ]


def test_each_channel_goes_through_the_stages_by_itself() -> None:
    outcome, stages = run(
        channels="split",
        use_diarization=True,
        Decoder=Handle(two_channels),
        VoiceActivityDetector=Handle(lambda recording: replace(SPEECH, original_format=recording.original_format)),
        TkanExtractor=Handle(lambda recording, *_: recording.original_format),
        Classifier=Handle(
            lambda features, point, explain, among: EXAMPLES["fake" if features == "first" else "inconclusive"]
        ),
    )
    assert [len(stages[stage].answers) for stage in STAGES] == [1, 2, 2, 2, 2]
    assert [(c.channel, c.result, c.note) for c in outcome.channels] == [
        ("CHANNEL_1", "Fake", None),
        ("CHANNEL_2", "No Speech", "silent"),
        ("CHANNEL_3", "Inconclusive", None),
    ]
    assert outcome.decided_by.channel == "CHANNEL_1"


def test_the_time_of_the_diarizer_counts_from_the_decoded_channel() -> None:
    slow = late(VoiceActivityDetector=0.6, Diarizer=1.2)
    outcome, _ = run(channels="split", use_diarization=True, Decoder=Handle(two_channels), **slow)
    assert type(outcome) is StageTimeout
    assert "Diarizer" in outcome.detail, "not from the end of the stage beside it"


def test_a_channel_that_fails_ends_the_others() -> None:
    def work(recording: Recording, *_: Any) -> str:
        if recording.original_format == "second":
            raise raised_by_a_stage(ValueError("ours"))
        return "features"

    outcome, stages = run(
        channels="split",
        Decoder=Handle(two_channels),
        TkanExtractor=Handle(work),
        Classifier=Handle(lambda *_: EXAMPLES["fake"], seconds=30),
    )
    assert isinstance(outcome, StageFailed)
    assert all(answer.cancelled for answer in stages["Classifier"].answers)


def test_no_speech_ends_the_request() -> None:
    outcome, stages = run(
        use_diarization=True,
        VoiceActivityDetector=Handle(lambda _: SILENCE),
        Diarizer=Handle(lambda _: (), seconds=30),
    )
    assert outcome == (SILENCE, True)
    assert not stages["TkanExtractor"].answers
    assert stages["Diarizer"].answers[0].cancelled


@pytest.mark.parametrize(
    ("work", "error", "says"),
    [
        (raising(raised_by_a_stage(UnsupportedFormat("Send WAV."))), UnsupportedFormat, "Send WAV."),
        (raising(raised_by_a_stage(BundleError("damaged"))), BundleError, "damaged"),
        (raising(raised_by_a_stage(ValueError("/secret/path"))), StageFailed, "{stage} failed"),
        (raising(raised_by_a_stage(TimeoutError("/secret/path"))), StageFailed, "{stage} failed"),
        (raising(ActorDiedError()), StageUnavailable, "{stage} is down"),
        (raising(raised_by_a_stage(ActorDiedError())), StageUnavailable, "{stage} is down"),
        (raising(BackPressureError(9, 8)), StageUnavailable, "{stage} is down or has too many"),
    ],
    ids=["input", "bundle", "unforeseen", "own timeout", "dead", "dead upstream", "overload"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_at_fault_is_named(
    stage: str, work: Callable[..., Any], error: type[SoundSentryError], says: str
) -> None:
    outcome, _ = run(use_diarization=True, **{stage: Handle(work)})
    assert type(outcome) is error
    assert says.format(stage=stage) in outcome.detail
    assert "secret" not in outcome.detail


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("gone", None)], ids=["dead", "out of reach"])
def test_a_request_whose_replica_died_is_tried_once_more(stage: str, error: Exception) -> None:
    answers = {"Decoder": RECORDING, "VoiceActivityDetector": SPEECH, "Diarizer": (), "TkanExtractor": "features"}
    once = Failing(error, 1, answers.get(stage, "verdict"))
    outcome, _ = run(use_diarization=True, **{stage: Handle(once)})
    assert not isinstance(outcome, SoundSentryError)
    assert once.calls == 2
    twice = Failing(error, 2, answers.get(stage, "verdict"))
    outcome, _ = run(use_diarization=True, **{stage: Handle(twice)})
    assert type(outcome) is StageUnavailable
    assert twice.calls == 2


@pytest.mark.parametrize("error", [BackPressureError(9, 8), raised_by_a_stage(ValueError("ours"))])
def test_no_other_failure_is_tried_again(error: Exception) -> None:
    failing = Failing(error, 1, "features")
    outcome, _ = run(TkanExtractor=Handle(failing))
    assert isinstance(outcome, StageUnavailable | StageFailed)
    assert failing.calls == 1


def test_the_classifier_is_told_what_is_an_update_of_a_stream() -> None:
    content: Any = "features"

    async def classify() -> Any:
        stages: dict[str, Any] = {"Classifier": Handle(lambda *arguments: arguments)}
        graph = Graph(stages, dict.fromkeys(STAGES, STAGE_SECONDS), 30.0)
        return await graph.classify(content, "balanced", 2)

    with asyncio.Runner(loop_factory=HurriedLoop) as runner:
        assert runner.run(classify()) == (content, "balanced", False, 2, True)


def needing(source: FeatureSource) -> BaseException:
    return raised_by_a_stage(OtherFeatures("trained on other features", source))


def test_the_classifier_gets_features_of_the_bundle_that_it_serves_by_now() -> None:
    source = FeatureSource(Path("new"), "recipe", "network")
    outcome, stages = run(
        TkanExtractor=Handle(lambda recording, speech, turns, source: source),
        Classifier=Handle(Failing(needing(source), 1, "verdict")),
    )
    assert outcome == "verdict"
    assert [answer.task.result() for answer in stages["TkanExtractor"].answers] == [None, source]


def test_a_classifier_that_never_agrees_with_itself_is_given_up() -> None:
    sources = itertools.cycle(FeatureSource(Path(name), name, "network") for name in ("old", "new"))

    def serve(*_: Any) -> Any:
        raise needing(next(sources))

    outcome, stages = run(Classifier=Handle(serve))
    assert type(outcome) is StageUnavailable and "being exchanged" in outcome.detail
    assert len(stages["Classifier"].answers) == EXCHANGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_takes_too_long_is_named_and_its_request_cancelled(stage: str) -> None:
    outcome, stages = run(use_diarization=True, **{stage: Handle(lambda *_: RECORDING, seconds=30)})
    assert type(outcome) is StageTimeout
    assert f"{stage} did not answer within {STAGE_SECONDS} seconds" in outcome.detail
    assert stages[stage].answers[0].cancelled


def late(**seconds: float) -> dict[str, Handle]:
    """Stages that take the given multiples of STAGE_SECONDS."""
    answers = {"Decoder": RECORDING, "VoiceActivityDetector": SPEECH, "Diarizer": (), "TkanExtractor": "features"}
    return {
        stage: Handle(lambda *_, stage=stage: answers.get(stage, "verdict"), share * STAGE_SECONDS)
        for stage, share in seconds.items()
    }


def test_the_time_of_a_stage_counts_from_when_its_input_is_there() -> None:
    slow = late(**dict.fromkeys(STAGES, 0.6))
    assert run(use_diarization=True, **slow)[0] == "verdict", "together the stages take several times the limit of one"


@pytest.mark.parametrize(
    ("before", "stage"),
    [("Decoder", "VoiceActivityDetector"), ("Decoder", "Diarizer"), ("TkanExtractor", "Classifier")],
)
def test_what_a_stage_leaves_of_its_time_is_not_the_next_ones(before: str, stage: str) -> None:
    """A stage that needs 1.4 times its limit fails, although the stage before it was quick."""
    outcome, _ = run(use_diarization=True, **late(**{before: 0.0, stage: 1.4}))
    assert type(outcome) is StageTimeout
    assert f"The {stage} did not answer within {STAGE_SECONDS} seconds" in outcome.detail


def test_the_diarizer_has_its_own_time_beside_the_voice_activity_detector() -> None:
    assert run(use_diarization=True, **late(VoiceActivityDetector=0.6, Diarizer=0.8))[0] == FEATURES
    outcome, _ = run(use_diarization=True, **late(VoiceActivityDetector=0.6, Diarizer=1.2))
    assert type(outcome) is StageTimeout
    assert "Diarizer" in outcome.detail, "both stages began when the recording was decoded"


@pytest.mark.parametrize("stage", STAGES)
def test_the_deadline_of_the_whole_request_names_the_stage_it_waited_for(stage: str) -> None:
    outcome, stages = run(
        use_diarization=True, request_seconds=STAGE_SECONDS / 2, **{stage: Handle(lambda *_: RECORDING, seconds=30)}
    )
    assert type(outcome) is RequestTimeout
    assert f"within {STAGE_SECONDS / 2} seconds: it was waiting for the {stage}" in outcome.detail
    assert stages[stage].answers[0].cancelled


def test_a_controller_that_hangs_is_asked_once_whatever_else_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    asks, answers = threading.Event(), threading.Event()
    replicas = SimpleNamespace(replica_states={"RUNNING": 1})
    applications = {"app": SimpleNamespace(deployments=dict.fromkeys(STAGES, replicas))}

    def status() -> Any:
        asked.append(1)
        asks.set()
        answers.wait(60)
        if len(asked) == 1:
            raise ConnectionError("the controller is gone")
        return SimpleNamespace(applications=applications)

    context = SimpleNamespace(app_name="app")
    monkeypatch.setattr(module, "serve", SimpleNamespace(status=status, get_replica_context=lambda: context))
    monkeypatch.setattr(module, "STATE_SECONDS", 0.0)

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        work = asyncio.create_task(asyncio.to_thread(answers.wait, 60))
        graph = Graph(dict.fromkeys(STAGES, Handle(str)), {}, 30.0)
        monkeypatch.setattr(module, "CONTROLLER_SECONDS", 0.1)
        for _ in range(4):
            assert {state["status"] for state in (await graph.states()).values()} == {"unknown"}
        assert asks.wait(60), "it waited for other work"
        assert len(asked) == 1
        answers.set()
        await work
        monkeypatch.setattr(module, "CONTROLLER_SECONDS", 60.0)
        while {state["status"] for state in (await graph.states()).values()} != {"healthy"}:
            assert len(asked) < 3, "the error of the first question may have been the answer of the second"

    try:
        asyncio.run(test())
    finally:
        answers.set()
