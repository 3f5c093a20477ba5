"""README and docs: each command can be run as written, links have a target, the site builds without a warning."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from starlette.routing import Match

from deployments.access import AccessConfig
from deployments.check import main as check_main
from deployments.http.admission import AdmissionConfig
from deployments.http.answers import AUDIO_ERRORS, PredictAnswer
from deployments.http.ingress import Ingress
from deployments.http.jobs import Jobs
from deployments.http.uploads import Options
from deployments.jobs.webhooks import signature
from deployments.results import problem
from pipeline.audio.formats import SUPPORTED_FORMATS
from pipeline.config import ROOT, DetectorConfig, Limits
from pipeline.detector import Detector
from pipeline.errors import EmptyAudio
from pipeline.models import REGISTRY
from pipeline.predict import main as predict_main
from pipeline.stream import LiveSettings
from tests.audio import encode
from tune.corpora.manifest import LABELS
from tune.corpora.readers import READERS

READMES = [ROOT / "README.md", ROOT / "ops" / "README.md", ROOT / "client" / "README.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
HTTP_PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
MAX_README_LINES = 150

RUN_ELSEWHERE = {
    "make serve": "tests/deployments/test_launch.py",
    "make test": ".ci/run",
    "serve run": "tests/graph.py",
    "serve deploy": "tests/graph.py",
    "serve status": "tests/graph.py",
}
"""Commands that no test in this file can run. The value is the file that runs them or makes the same call."""

NOT_RUN = {
    "docker": "needs Docker",
    "kubectl": "needs a Kubernetes cluster",
    "openssl": "a program of the system: makes secrets for compose and Kubernetes",
    "mkdir": "a program of the system: makes secrets for compose",
    "cp": "a program of the system: the certificate is yours",
    "chmod": "a program of the system: makes secrets for compose",
    "cd": "of the shell",
    "source": "of the shell",
    "echo": "of the shell",
    "export": "of the shell",
    "git": "of the developer",
    "ffmpeg": "a program of the system: fetches a stream of your choice",
    "pip": "installs from a package registry; tests/client/test_distribution.py does it for the client",
}

COMMANDS = {"sound_sentry": "sound_sentry.command", "deployments.bulk": "deployments.bulk.__main__"}
"""For packages that can be run as commands: the module that has `main`."""


def commands(page: Path) -> list[str]:
    """The commands of a page: the lines of its shell blocks, and the text after a prompt in its consoles."""
    found = []
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if language == "console" and line.startswith("$ "):
                found.append(line[2:])
            elif language == "sh" and line.strip() and not line.startswith("#"):
                found.append(line)
    return found


def mentioned_commands(page: Path) -> list[str]:
    """The commands of ours that the sentences and tables of a page mention, often without what they need to run."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(found.split()) for found in re.findall(rf"`((?:{OUR_PROGRAMS}) [^`]+)`", prose)]


OUR_PROGRAMS = r"python -m|make|serve|sound-sentry|(?:\.venv/bin/)?pytest"
ALL_COMMANDS = sorted({command for page in PAGES for command in commands(page)})
MENTIONED = sorted({command for page in PAGES for command in mentioned_commands(page)})


def test_there_are_commands_on_most_pages() -> None:
    assert len(ALL_COMMANDS) > 20
    assert {"make serve", "make test"} <= {" ".join(shlex.split(command, comments=True)) for command in ALL_COMMANDS}


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_a_command_can_be_run(command: str) -> None:
    """A module accepts the arguments. Make knows the target. A form has only fields that exist."""
    for part in re.split(r" && | \| ", command):
        words = shlex.split(part, comments=True)
        while "=" in words[0] and not words[0].startswith("-"):
            words.pop(0)  # variables for this command only
        program = Path(words[0]).name
        if words[:2] == ["python", "-m"]:
            arguments = words[3 : words.index(">")] if ">" in words else words[3:]
            understands(words[2], arguments)
        elif program == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        elif program == "curl":
            asks_for_what_there_is(words[1:])
        elif program == "pytest":
            assert not [word for word in words[1:] if word.startswith("tests/") and not (ROOT / word).exists()]
        elif program == "sound-sentry":
            understands("sound_sentry", words[1:])
        elif program == "promtool":
            assert (ROOT / words[-1]).exists()
        else:
            assert program in NOT_RUN or " ".join(words[:2]) in RUN_ELSEWHERE, program


@pytest.mark.parametrize("command", MENTIONED)
def test_a_command_that_a_sentence_mentions_exists(command: str) -> None:
    """A module has a command line with these options. Make knows the target. The tests are there."""
    words = shlex.split(command)
    program = Path(words[0]).name
    if program == "make":
        assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0
    elif program == "pytest":
        assert not [word for word in words[1:] if word.startswith("tests/") and not (ROOT / word).exists()]
    elif program == "serve":
        assert " ".join(words[:2]) in RUN_ELSEWHERE
    else:
        given = set(re.findall(r"--[a-z][\w-]*", command))
        assert given <= options_of(parser_of("sound_sentry" if program == "sound-sentry" else words[2]))


class Parsing(BaseException):
    """Ends a command when it is about to read its arguments, so that none of its work is done."""


def parser_of(module: str) -> ArgumentParser:
    """The parser of the command line of a module."""

    def stop(parser: ArgumentParser, given: Sequence[str] | None = None) -> None:
        raise Parsing(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsing) as stopped:
        patch.setattr(ArgumentParser, "parse_args", stop)
        main: Callable[..., object] = importlib.import_module(COMMANDS.get(module, module)).main
        main(*[[]] if inspect.signature(main).parameters else [])  # some read sys.argv themselves
    parser: ArgumentParser = stopped.value.args[0]
    return parser


def options_of(parser: ArgumentParser) -> set[str]:
    """The options of a command line, and those of its subcommands."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            found = found.union(*map(options_of, action.choices.values()))
    return found


def understands(module: str, arguments: list[str]) -> None:
    """The module has a command line, and accepts the `arguments`."""
    if module == "deployments.check":
        assert check_main([str(ROOT / argument) for argument in arguments]) == 0
        return
    parsed = parser_of(module).parse_args(arguments)
    if module == "pipeline.models":  # it checks the names itself
        assert set(parsed.names) <= set(REGISTRY)


def asks_for_what_there_is(arguments: list[str]) -> None:
    """`curl` asks for a path of the service, and sends only fields that it reads. The tests of the service send the
    same forms."""
    fields = {word.partition("=")[0] for flag, word in pairwise(arguments) if flag == "-F"}
    (address,) = [word for word in arguments if re.match(r"(https?://)?[\w.-]+:\d+(/|$)", word)]
    path = "/" + re.sub(r"https?://", "", address).partition("/")[2].partition("?")[0]
    sends = {"-F", "--json", "-d", "--data"} & set(arguments)
    scope: dict[str, Any] = {"type": "http", "method": "POST" if sends else "GET", "path": path, "headers": []}
    assert any(route.matches(scope)[0] is Match.FULL for route in app().routes), path
    if fields:
        assert fields <= {"audio", "files", *Options.model_fields}
        assert path in ("/predict", "/batch-predict", "/jobs")


@cache
def app() -> FastAPI:
    """The app of the service, without the stages behind it."""
    deployment: Any = Ingress
    ingress = deployment.func_or_class.__mro__[1]  # what Serve wraps
    how = (DetectorConfig(), (), AccessConfig(), AdmissionConfig())
    made: FastAPI = ingress(*how, {}, 60.0, LiveSettings(), None, None, {"Decoder": None}).__serve_build_asgi_app__()
    Jobs.add_routes(Jobs.__new__(Jobs), made)
    return made


@pytest.mark.parametrize(
    "command",
    ["curl localhost:8000/gone", "curl localhost:8000/predict", "curl -F audio=@call.wav localhost:8000/info"],
)
def test_a_path_that_the_service_does_not_have_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        test_a_command_can_be_run(command)


def programs(page: Path) -> list[str]:
    """The Python programs of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_every_program_of_the_docs_is_known_here() -> None:
    """tests/client/test_distribution.py runs those of the client. The tests below run all others."""
    found = {
        page.name: len(programs(page)) for page in PAGES if page != ROOT / "client" / "README.md" and programs(page)
    }
    assert found == {"README.md": 1, "jobs-and-streams.md": 1, "untrusted-audio.md": 1}


def test_the_program_of_the_readme_prints_a_verdict(
    ten_seconds: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "call.webm").write_bytes(encode(ten_seconds, "webm"))
    monkeypatch.chdir(tmp_path)
    (program,) = programs(ROOT / "README.md")
    exec(program, {})
    assert re.match(r"(Real|Fake|Inconclusive) 0\.\d+ \[\('SPEAKER_00', '\w+'\)", capsys.readouterr().out)


def shown_answer() -> dict[str, Any]:
    """The answer that the README shows. `…` in it stands for values that are left out."""
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    answer: dict[str, Any] = json.loads(re.sub(r"…(?=[],])", '"…"', block))
    return answer


def agrees(shown: Any, found: Any) -> bool:
    """Whether a shown value is the one that was found, up to what `…` leaves out and to what another CPU may change."""
    if isinstance(shown, dict):
        return shown.keys() <= found.keys() and all(agrees(value, found[name]) for name, value in shown.items())
    if isinstance(shown, list):
        left_out = shown.index("…") if "…" in shown else len(shown)
        first, last = shown[:left_out], shown[left_out + 1 :]
        pairs = zip(first + last, [*found[: len(first)], *found[len(found) - len(last) :]], strict=True)
        return (left_out < len(shown) or len(shown) == len(found)) and all(agrees(*pair) for pair in pairs)
    if isinstance(shown, str) and shown.endswith("…"):
        return str(found).startswith(shown.removesuffix("…"))
    return bool(found == (pytest.approx(shown, abs=0.0005) if isinstance(shown, float) else shown))


def test_the_readme_shows_the_answer_of_the_default_bundle(detector: Detector, sample_wav: bytes) -> None:
    shown = shown_answer()
    assert (shown.pop("filename"), shown.pop("timestamp")[10:]) == ("sample.wav", "T00:00:00Z")
    answer = detector.predict(sample_wav).model_dump(mode="json")
    assert {name: value for name, value in shown.items() if not agrees(value, answer[name])} == {}


def test_the_readme_shows_what_the_command_line_prints(
    sample_wav: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are those of docs/page.png, too: `python -m tests.picture` sends the same recording."""
    (tmp_path / "call.wav").write_bytes(sample_wav)
    (tmp_path / "empty.wav").touch()
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    command, *shown, _, code = block.splitlines()
    assert predict_main(shlex.split(command)[4:]) == int(code)
    printed = capsys.readouterr()
    assert [line.rstrip() for line in (printed.out + printed.err).splitlines()] == shown


def test_the_program_about_webhooks_knows_a_genuine_one() -> None:
    (program,) = programs(ROOT / "docs" / "jobs-and-streams.md")
    names: dict[str, Any] = {"hashlib": hashlib, "hmac": hmac, "secret": b"0123456789abcdef", "body": b"{}"}
    names["headers"] = {"X-Sound-Sentry-Signature": signature(names["secret"], names["body"])}
    exec(program, names)
    assert names["genuine"] is True


def test_the_program_about_untrusted_audio_measures_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = programs(ROOT / "docs" / "untrusted-audio.md")
    shorter = program.replace("1 / 6,", "1 / 3600,")
    assert shorter != program
    exec(shorter, {})
    assert float(capsys.readouterr().out) > 0


def test_what_runs_elsewhere_is_there() -> None:
    for command, path in RUN_ELSEWHERE.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert command.split()[-1] in text, (command, path)


def test_the_readme_is_short_and_has_a_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    assert re.search(r"!\[[^]]+\]\(docs/page\.png\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    roots = "pipeline|deployments|tune|configs|ops|client|docs|tests"
    for path in re.findall(rf"`((?:{roots})/[\w./-]+)`", text):
        assert (ROOT / path).exists() or (page.parent / path).exists(), path
    for path, test in re.findall(r"`(tests/[\w./-]+)::(\w+)`", text):
        assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_the_page_about_http_lists_the_formats_of_their_table() -> None:
    found = re.search(r"\| formats \|\n\|---\|\n\| (.*?) \|", HTTP_PAGE)
    assert found and tuple(found[1].lower().split(", ")) == SUPPORTED_FORMATS


def test_the_page_about_http_states_the_default_limits() -> None:
    limits = Limits()
    assert (
        f"The default limits are {limits.max_upload_mib:g} MiB and {limits.max_duration_seconds / 60:g} minutes per "
        f"recording, {limits.max_files} files per batch, {limits.max_channels} channels, and sample rates from "
        f"{limits.min_sample_rate / 1000:g} to {limits.max_sample_rate / 1000:g} kHz. "
        f"With `channels=split`, all channels together may last {limits.max_split_durations:g} times as long as one "
        "recording"
    ) in " ".join(HTTP_PAGE.split())


def test_the_page_about_http_shows_a_problem_document_of_the_service() -> None:
    (shown,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", HTTP_PAGE, re.DOTALL))
    assert shown == problem(EmptyAudio(shown["detail"])) | {"request_id": shown["request_id"]}
    assert shown["detail"] in [error.detail for error in AUDIO_ERRORS]


def test_the_page_about_http_names_every_field_of_a_form() -> None:
    rows = re.findall(r"^\| (`.*?`) \|.*\|.*\|$", HTTP_PAGE, re.MULTILINE)
    assert {field.strip("`") for row in rows for field in row.split(", ")} == {"audio", *Options.model_fields}


def test_the_pages_that_list_the_fields_of_an_answer_have_all_of_them() -> None:
    fields = set(PredictAnswer.model_fields)
    migration = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    table = migration.split("## Fields of an answer\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == fields

    assert set(shown_answer()) == fields - {"explanation"}, "the request did not ask for it"


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_a_page_names_each_label_of_a_manifest(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    found = re.search(r"(?:a label|`label`) is `bonafide` [^.;]*", text)
    assert found and set(re.findall(r"`(\w+)`", found[0])) - {"label"} == set(LABELS)


def test_the_page_about_training_names_each_layout_of_a_corpus() -> None:
    text = " ".join((ROOT / "docs" / "training.md").read_text(encoding="utf-8").split())
    found = re.search(r"`--kind` reads other layouts: (.*?)\. `check`", text)
    assert found and set(re.findall(r"`([\w-]+)`", found[1])) == set(READERS) - {"manifest"}


def test_the_page_about_jobs_has_a_row_for_each_endpoint() -> None:
    app = FastAPI()
    Jobs.add_routes(Jobs.__new__(Jobs), app)
    text = (ROOT / "docs" / "jobs-and-streams.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z]+ /jobs[^`]*)` \|", text, re.MULTILINE)
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path.startswith("/jobs")]
    assert sorted(rows) == sorted(f"{method} {route.path}" for route in routes for method in route.methods or ())


STUMBLED = r"for (it|they) (has|have|had)|but once|begun anew|in vain|some \d+ ms|(that|which) \w+ \w+ has not"
"""Words that readers had to read twice. Only this file may contain them."""


def test_the_words_that_readers_stumbled_over_are_gone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = [name for name in listed if name.endswith((".md", ".py", ".js", ".html", ".yaml", ".yml", "Makefile"))]
    assert len(ours) > 100
    found = [
        f"{name}: {match.group()}"
        for name in ours
        if not name.startswith(("tests/test_docs.py", "deployments/page/vendor/", "pipeline/bundles/"))
        for match in re.finditer(rf"\b(?:{STUMBLED})\b", (ROOT / name).read_text(encoding="utf-8"))
    ]
    assert not found


def build_site(folder: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does, into `folder`."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ndocs: env\n")[1]
    (arguments,) = re.findall(r"^\t\$\(BIN\)/mkdocs (.*)$", recipe, re.MULTILINE)
    command = [Path(sys.executable).with_name("mkdocs"), *shlex.split(arguments), "--site-dir", folder, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_link_or_an_anchor_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Page\n\n[here](#page)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(re.sub(r"^nav:.*", "", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.DOTALL | re.MULTILINE))
    assert build_site(tmp_path / "site", "--config-file", config).returncode == 0
    for target in ("gone.md", "#gone"):
        (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n[there]({target})\n")
        assert build_site(tmp_path / "site", "--config-file", config).returncode != 0, target


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build_site(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api.html").read_text(encoding="utf-8").count("<table>") >= 3
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text("utf-8"))
        assert not loaded, "the site loads nothing from other hosts"
