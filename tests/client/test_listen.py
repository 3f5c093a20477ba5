"""`sound-sentry listen`, as a person runs it, against a stand-in for the service."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.websockets import WebSocket

from pipeline.config import ROOT
from tests.audio import encode
from tests.client.stand_in import FAKE, INFO_ANSWER, StandIn, stand_in
from tests.client.test_stream import UPDATE, VERDICT, say_as_the_service_does
from tests.graph import wait_until

HALF_A_SECOND = np.zeros(8_000, np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with stand_in() as server:
        server.put_up(INFO_ANSWER)
        server.converse = say_as_the_service_does
        yield server


def start(server: StandIn, *arguments: str | Path, path: str | None = None) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client"), "SOUND_SENTRY_URL": server.url}
    return subprocess.Popen(
        [sys.executable, "-m", "sound_sentry", "listen", *arguments],
        env=environment | ({"PATH": path} if path is not None else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(server: StandIn, *arguments: str | Path, sound: bytes = b"", path: str | None = None) -> tuple[int, str, str]:
    """The exit code, the answers, and the errors."""
    with start(server, *arguments, path=path) as process:
        output, errors = process.communicate(sound, timeout=120)
    assert b"Traceback" not in errors
    return process.returncode, output.decode(), errors.decode()


def sound_received(server: StandIn) -> tuple[dict[str, object], bytes]:
    """The first message of the stream, and the sound that followed."""
    opening, *sound, end = server.received
    assert json.loads(end) == {"end": True}
    return json.loads(opening), b"".join(part for part in sound if isinstance(part, bytes))


def test_a_wav_file(server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    samples = np.linspace(-0.5, 0.5, 8_000, dtype=np.float32)
    path.write_bytes(encode(np.stack([samples, -samples]), rate=8_000))
    code, output, _ = run(server, path, "--per-channel")
    assert code == 1
    opening, sound = sound_received(server)
    assert opening == {"format": "pcm_s16le", "sample_rate": 8_000, "channels": 2, "per_channel": True}
    left, right = np.frombuffer(sound, "<i2").reshape(-1, 2).T / 2**15
    assert np.allclose(left, samples, atol=1e-4)
    assert np.allclose(right, -samples, atol=1e-4)
    *updates, _, file, speaker = output.splitlines()
    assert {" ".join(line.split()) for line in updates} == {"0:00.5 Real 10 % 0–20 %"}
    assert file.split()[:2] == [str(path), "Fake"]
    assert speaker.split()[0] == "SPEAKER_00"


def test_a_reason_is_a_sentence(server: StandIn, tmp_path: Path) -> None:
    async def doubt(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.receive_text()
        await socket.send_json(UPDATE | {"overall": "Inconclusive", "reasons": ["too_short", "of_tomorrow"]})
        await socket.send_json(VERDICT)
        await socket.close(1000)

    path = tmp_path / "call.wav"
    path.write_bytes(encode(HALF_A_SECOND))
    server.converse = doubt
    try:
        output = run(server, path)[1]
    finally:
        server.converse = say_as_the_service_does
    assert f"0–20 %     {INFO_ANSWER['reasons']['too_short']} of_tomorrow" in output.splitlines()[0]


def test_a_pipe_of_wav_and_one_of_raw_samples(server: StandIn) -> None:
    raw = (HALF_A_SECOND + 0.25).astype(np.float32)
    wav = encode(raw, live=True)
    code, output, _ = run(server, "-", "--json", sound=wav)
    assert code == 1
    *updates, verdict = map(json.loads, output.splitlines())
    assert updates and all(update == UPDATE for update in updates)
    assert verdict == VERDICT | {"filename": "-", "status": "success"}
    opening, sound = sound_received(server)
    assert opening == {"format": "pcm_s16le", "sample_rate": 16_000, "channels": 1}
    assert run(server, "-", "--sample-rate=16000", sound=sound)[0] == 1
    assert sound_received(server) == (opening, sound)
    assert len(sound) == 2 * len(raw)


def test_webm_is_passed_on(server: StandIn) -> None:
    data = encode(HALF_A_SECOND, "webm", live=True)
    assert run(server, "-", sound=data)[0] == 1
    assert sound_received(server) == ({"format": "webm"}, data)


def test_a_webm_file_is_for_predict(server: StandIn, tmp_path: Path) -> None:
    """It would come faster than it can be recorded, and the service refuses that."""
    path = tmp_path / "call.webm"
    path.write_bytes(encode(HALF_A_SECOND, "webm"))
    code, output, errors = run(server, path)
    assert (code, output) == (2, "")
    assert errors.startswith(f"{path} is a WebM file") and "`sound-sentry predict`" in errors


def test_csv_has_only_rows(server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(encode(HALF_A_SECOND))
    code, output, errors = run(server, path, "--csv")
    assert code == 1
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [(row["path"], row["result"]) for row in rows] == [(str(tmp_path / r"caf\xe9.wav"), "Fake")] * 2
    assert "0:00.5" in errors


def test_the_service_may_end_the_stream_before_standard_input_ends(server: StandIn) -> None:
    async def end_after_one(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.receive()
        received.append((await socket.receive())["bytes"])
        await socket.send_json(VERDICT)
        await socket.close(1000, "Nobody has spoken for a while.")

    try:
        server.converse = end_after_one
        with start(server, "-", "--sample-rate=16000") as process:
            assert process.stdin and process.stderr
            process.stdin.write(bytes(3_200))  # one chunk; the next read waits
            process.stdin.flush()
            code = process.wait(60)
            assert (code, process.stderr.read()) == (1, b"")
    finally:
        server.converse = say_as_the_service_does


@pytest.mark.parametrize(
    "data",
    [
        encode(HALF_A_SECOND, "mp3"),
        encode(HALF_A_SECOND, codec="pcm_f32le"),
        encode(HALF_A_SECOND, codec="pcm_s24le"),
        b"",
    ],
    ids=["mp3", "floats", "24 bits", "nothing"],
)
def test_what_cannot_be_streamed_is_refused(server: StandIn, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sound"
    path.write_bytes(data)
    code, output, errors = run(server, path)
    assert (code, output) == (2, "")
    assert "neither 16-bit WAV nor WebM" in errors and "ffmpeg" in errors


def test_a_file_that_is_not_there(server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "gone.wav"
    code, output, errors = run(server, path)
    assert (code, output) == (2, "")
    assert errors == f"{path} cannot be read: No such file or directory. Name a 16-bit WAV file.\n"


def recorder(folder: Path, script: str) -> str:
    """A PATH on which `arecord` is a script, because there is no microphone here."""
    program = folder / "arecord"
    program.write_text(f"#!{shutil.which('bash')}\nPATH={os.environ['PATH']}\n{script}\n")
    program.chmod(0o755)
    return str(folder)


def test_the_microphone_is_heard_until_ctrl_c(server: StandIn, tmp_path: Path) -> None:
    path = recorder(tmp_path, 'echo "$@" > $(dirname "$0")/arguments; exec cat /dev/zero')
    server.received.clear()
    with start(server, "--sample-rate=8000", "--device=hw:1", path=path) as process:
        wait_until(lambda: len(server.received) > 4, 60)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert output.decode().splitlines()[-2].split()[:2] == ["microphone", "Fake"]
    assert sound_received(server)[0] == {"format": "pcm_s16le", "sample_rate": 8_000, "channels": 1}
    arguments = (tmp_path / "arguments").read_text().split()
    assert {"--format=S16_LE", "--rate=8000", "--channels=1", "--device=hw:1", "--file-type=raw"} <= set(arguments)


@pytest.mark.parametrize(("source", "most_seconds"), [("microphone", 600.0), ("-", 0.15)])
def test_what_was_recorded_is_judged_though_the_stream_breaks(
    server: StandIn, tmp_path: Path, source: str, most_seconds: float
) -> None:
    async def break_off(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        received.append(await socket.receive_text())
        received.extend([(await socket.receive())["bytes"] for _ in range(2)])
        await socket.close(1011)

    options = ["--sample-rate=8000", "--channels=2", "--per-channel", "--operating-point=recall"]
    path = recorder(tmp_path, "exec cat /dev/urandom") if source == "microphone" else None
    server.converse = break_off
    server.put_up(INFO_ANSWER | {"limits": INFO_ANSWER["limits"] | {"max_duration_seconds": most_seconds}}, FAKE)
    try:
        with start(server, *options, *(["-"] if source == "-" else []), path=path) as process:
            assert process.stdin and process.stdout and process.stderr
            if source == "-":
                process.stdin.write(os.urandom(8_000))  # it stays open: only the break ends the stream
                process.stdin.flush()
            code, output, errors = process.wait(60), process.stdout.read().decode(), process.stderr.read().decode()
    finally:
        server.converse = say_as_the_service_does
    assert code == 1, errors
    assert errors.startswith("The stream broke off before its verdict.")
    assert "The sound up to then is now judged like any other recording." in errors
    assert output.splitlines()[-2].split()[:2] == [source, "Fake"]
    assert server.fields[1] == {"use_diarization": "false", "operating_point": "recall", "channels": "split"}
    ((_, _, wav),) = server.files[1]
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8_000, 2, 2)
        sent = b"".join(part for part in server.received[1:] if isinstance(part, bytes))
        assert file.readframes(file.getnframes()).startswith(sent[: int(most_seconds * 8_000) * 4])
        assert file.getnframes() <= most_seconds * 8_000
    server.put_up(INFO_ANSWER)


def test_a_file_of_which_the_stream_breaks_is_not_judged_in_part(server: StandIn, tmp_path: Path) -> None:
    async def break_off(socket: WebSocket, received: list[str | bytes]) -> None:
        await socket.accept()
        await socket.receive_text()
        await socket.receive()
        await socket.close(1011)

    (tmp_path / "call.wav").write_bytes(encode(np.zeros(32_000, np.float32)))
    server.converse = break_off
    try:
        code, output, errors = run(server, tmp_path / "call.wav")
    finally:
        server.converse = say_as_the_service_does
    assert (code, output) == (2, "")
    assert errors == "The stream broke off before its verdict. Begin a new one.\n"


def test_no_microphone_is_a_sentence(server: StandIn, tmp_path: Path) -> None:
    code, output, errors = run(server, path=str(tmp_path))
    assert (code, output) == (2, "")
    assert errors.startswith("There is no recorder. Install arecord")
    script = 'echo "ALSA lib: noise" >&2; echo "arecord: main:831: audio open error: No such device" >&2; exit 1'
    code, _, errors = run(server, path=recorder(tmp_path, script))
    assert code == 2
    assert "The recorder failed: arecord: main:831: audio open error: No such device. Check the microphone" in errors


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")
def test_ffmpeg_records_where_there_is_no_arecord(server: StandIn, tmp_path: Path) -> None:
    """No sound server runs here. The error shows that FFmpeg was started, because FFmpeg reports this."""
    ffmpeg = shutil.which("ffmpeg")
    assert ffmpeg
    (tmp_path / "ffmpeg").symlink_to(ffmpeg)
    code, _, errors = run(server, "--device=nowhere", path=str(tmp_path))
    assert code == 2
    assert "The recorder failed: " in errors
