"""Live streams are cut into stretches that the decoder reads like any upload."""

from __future__ import annotations

import io
import math
import random
import wave
from collections.abc import Iterator

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import correlate

from pipeline.audio.decode import decode
from pipeline.audio.tape import PcmTape, WebmTape
from pipeline.config import Limits
from pipeline.errors import UnreadableAudio
from tests.audio import encode

RATE = 16_000
LIMITS = Limits()
LIMIT_SECONDS = LIMITS.max_duration_seconds


@pytest.fixture(scope="module")
def samples(sample_wav: bytes) -> NDArray[np.float32]:
    """20 s of two people, (time,) at 16 kHz."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        file.setpos(7 * RATE)
        return np.frombuffer(file.readframes(20 * RATE), dtype="<i2").astype(np.float32) / np.float32(2**15)


@pytest.fixture(scope="module")
def webm(samples: NDArray[np.float32]) -> bytes:
    """WebM as a browser records it: the sizes of the segment and of the clusters are unknown."""
    return encode(samples, "webm", live=True)


def pieces(data: bytes, seed: int = 0, longest: int = 3_000) -> Iterator[bytes]:
    """`data` in pieces of random length, as a network delivers it."""
    chance = random.Random(seed)
    offset = 0
    while offset < len(data):
        length = chance.randint(1, longest)
        yield data[offset : offset + length]
        offset += length


def filled(tape: WebmTape, data: bytes, seed: int = 0) -> WebmTape:
    for piece in pieces(data, seed):
        tape.add(piece)
    return tape


def decoded(file: bytes) -> NDArray[np.float32]:
    return decode(file, LIMITS).waveform.samples


def test_a_stretch_of_pcm_is_those_samples(samples: NDArray[np.float32]) -> None:
    stereo = (np.stack([samples, -0.5 * samples], axis=1) * 2**15).astype("<i2")
    tape = PcmTape(RATE, 2, LIMIT_SECONDS)
    for piece in pieces(stereo.tobytes()):
        tape.add(piece)
    assert tape.seconds == 20
    part = stereo[2 * RATE : 6 * RATE] / 2**15
    np.testing.assert_allclose(decoded(tape.stretch(2, 6)), part.mean(axis=1), atol=1e-4)
    for channel in (0, 1):
        np.testing.assert_allclose(decoded(tape.channel_stretch(channel, 2, 6)), part[:, channel], atol=1e-4)
    np.testing.assert_allclose(decoded(tape.whole()), (stereo / 2**15).mean(axis=1), atol=1e-4)


def test_half_a_frame_of_pcm_waits_for_its_other_half() -> None:
    tape = PcmTape(8_000, 2, LIMIT_SECONDS)
    tape.add(bytes(4 * 8_000 + 3))
    assert tape.seconds == 1
    assert len(decoded(tape.whole())) == RATE
    tape.add(bytes(1))
    assert tape.seconds == pytest.approx(1 + 1 / 8_000)


@pytest.mark.parametrize("longest", [1_000, 500_000])
def test_what_comes_after_the_limit_is_dropped(samples: NDArray[np.float32], webm: bytes, longest: int) -> None:
    """A message may hold more than what is left. The whole must still be a recording of allowed length."""
    pcm = (samples * 2**15).astype("<i2").tobytes()
    for tape, data, sound in ((PcmTape(RATE, 1, 7.5), pcm, samples), (WebmTape(4, 7.5), webm, decoded(webm))):
        for piece in pieces(data, longest=longest):
            tape.add(piece)
        assert tape.seconds == pytest.approx(7.5, abs=0.07)
        whole = decode(tape.whole(), Limits(max_duration_seconds=7.5)).waveform.samples
        assert len(whole) == pytest.approx(7.5 * RATE, abs=0.1 * RATE)
        np.testing.assert_allclose(whole, sound[: len(whole)], atol=1e-4)


def test_a_block_that_holds_several_frames_still_does_in_a_stretch() -> None:
    """The frames of such a block are laced: two flags say how (RFC 9559, section 10.3)."""
    laced = bytes.fromhex("81000082") + b"payload"
    tape = WebmTape(4, LIMIT_SECONDS)
    tape.add(BEGUN + b"\xa3" + bytes([0x80 | len(laced)]) + laced)
    assert tape.stretch(0, 1).endswith(laced)


def test_the_whole_of_a_webm_stream_is_what_came(webm: bytes) -> None:
    tape = filled(WebmTape(5, LIMIT_SECONDS), webm)
    assert tape.whole() == webm
    assert tape.size == len(webm)
    assert tape.seconds == pytest.approx(20, abs=0.07)


def test_a_stretch_of_webm_sounds_as_it_does_in_the_whole(webm: bytes) -> None:
    tape = filled(WebmTape(30, LIMIT_SECONDS), webm)
    whole = decoded(webm)
    for start, end in ((0.0, 4.0), (3.5, 7.5), (15.5, 19.5)):
        stretch = decoded(tape.stretch(start, end))
        assert len(stretch) == pytest.approx((end - start) * RATE, abs=0.07 * RATE)
        # Find the exact place in the whole. The stretch is cut between blocks, so it may start a little earlier or
        # later. Its ends are left out, because Opus needs a moment until its output is right.
        settled = stretch[RATE // 10 : -RATE // 10]
        first = round(start * RATE)
        near = whole[max(0, first - RATE // 10) : first + len(stretch) + RATE // 10]
        shift = int(np.argmax(correlate(near, settled, mode="valid")))
        assert np.corrcoef(settled, near[shift : shift + len(settled)])[0, 1] > 0.999


@pytest.mark.parametrize("seed", range(3))
def test_how_a_stream_is_chopped_changes_nothing(webm: bytes, seed: int) -> None:
    tape = filled(WebmTape(30, LIMIT_SECONDS), webm, seed)
    byte_by_byte = WebmTape(30, LIMIT_SECONDS)
    for byte in webm[:20_000]:
        byte_by_byte.add(bytes([byte]))
    assert byte_by_byte.stretch(0, 0.5) == tape.stretch(0, 0.5)


def test_only_the_last_blocks_are_kept_for_stretches(webm: bytes) -> None:
    tape = filled(WebmTape(4, LIMIT_SECONDS), webm)
    assert len(decoded(tape.stretch(tape.seconds - 3, tape.seconds))) == pytest.approx(3 * RATE, abs=0.07 * RATE)
    assert len(decoded(tape.stretch(0, 4))) < 0.1 * RATE


def test_a_stretch_with_nothing_in_it_is_no_error(webm: bytes) -> None:
    tape = filled(WebmTape(30, LIMIT_SECONDS), webm)
    assert len(decoded(tape.stretch(100, 104))) < 0.1 * RATE


def test_a_finished_webm_file_is_read_as_well(samples: NDArray[np.float32]) -> None:
    """The segment of such a file has a size, and there are cues and tags between and after the clusters."""
    file = encode(samples, "webm")
    tape = filled(WebmTape(30, LIMIT_SECONDS), file)
    assert tape.seconds == pytest.approx(20, abs=0.07)
    assert len(decoded(tape.stretch(1, 5))) == pytest.approx(4 * RATE, abs=0.07 * RATE)


def test_blocks_in_groups_are_read_as_well(samples: NDArray[np.float32]) -> None:
    """libav writes the last block of Opus as a group of blocks, because only a group can tell its padding."""
    odd = encode(samples[: RATE + 100], "webm", live=True)
    assert b"\xa0" in odd
    with av.open(io.BytesIO(odd), "r") as file:
        last = [float(packet.pts * packet.time_base) for packet in file.demux() if packet.pts is not None][-1]
    first = 0.0
    assert filled(WebmTape(30, LIMIT_SECONDS), odd).seconds == pytest.approx(last - first, abs=0.01)


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"OggS" + bytes(40),
        bytes(64),
        b"\xff" * 64,
        b"<html></html>",
        b"\x1aE\xdf\xa3\x01\x00\x00\x00\x7f\xff\xff\xff",  # a header of 2 GiB
        b"\x1aE\xdf\xa3\x80\x1f\x43\xb6\x75\xff\xa3\x85\x81\x00\x00\x80\x00",  # a block before any track
        b"\x1aE\xdf\xa3\x80\x1aE\xdf\xa3\x80",  # two headers
    ],
    ids=["wav", "ogg", "zeros", "ones", "html", "huge", "no track", "twice"],
)
def test_garbage_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(UnreadableAudio, match=r"Begin a new stream with its first byte\.$"):
        WebmTape(10, LIMIT_SECONDS).add(data)


BEGUN = bytes.fromhex("1a45dfa380 18538067ff 1549a96680 1654ae6b80 1f43b675ff e78100")
"""A stream up to its first block."""

EMPTY = bytes.fromhex("a384 81000080")


def cluster(milliseconds: int) -> bytes:
    """A cluster with one empty block."""
    return bytes.fromhex("1f43b675ff e788") + milliseconds.to_bytes(8, "big") + EMPTY


FLOODS = {
    "blocks at one time": EMPTY * 100_000,
    "padding": b"\xec\x80" * 100_000,
    "padding in a block group": b"\xa0\x23\x0d\x40" + b"\xec\x80" * 100_000,
    "padding in a header": b"\x15\x49\xa9\x66\x23\x0d\x40" + b"\xec\x80" * 100_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("longest", [10_000, 2**24], ids=["in small messages", "in one message"])
def test_a_flood_of_empty_parts_is_refused(flood: bytes, longest: int) -> None:
    tape = WebmTape(4, LIMIT_SECONDS)
    stream = BEGUN + flood
    with pytest.raises(UnreadableAudio, match="far more parts than its sound needs"):
        for offset in range(0, len(stream), longest):
            tape.add(stream[offset : offset + longest])


def test_times_that_jump_make_no_room_within_a_message() -> None:
    """The speed of a stream is only known after a message."""
    with pytest.raises(UnreadableAudio, match="far more parts than its sound needs"):
        WebmTape(4, math.inf).add(BEGUN + b"".join(cluster(1_000_000 * i) for i in range(10_000)))


@pytest.mark.parametrize(
    "block", [EMPTY[:3] + b"\xff\xff\x80", bytes.fromhex("1f43b675ff e788 ffffffffffffffff") + EMPTY]
)
def test_times_before_the_start_and_after_all_time_are_refused(block: bytes) -> None:
    with pytest.raises(UnreadableAudio, match="not the WebM of a recorder"):
        WebmTape(4, LIMIT_SECONDS).add(BEGUN + block)


def test_the_shortest_blocks_of_opus_are_no_flood() -> None:
    """There are 400 a second, here for a minute, and not even two share a cluster."""
    tape = filled(WebmTape(15, LIMIT_SECONDS), BEGUN + b"".join(cluster(round(2.5 * i)) for i in range(60 * 400)))
    assert tape.seconds == pytest.approx(60, abs=0.01)


@given(st.data())
def test_damage_is_refused_or_read_but_never_breaks(webm: bytes, data: st.DataObject) -> None:
    damaged = bytearray(webm[:6_000])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    tape = WebmTape(10, LIMIT_SECONDS)
    try:
        tape.add(bytes(damaged))
        if tape.seconds > 0:
            tape.stretch(max(0, tape.seconds - 4), tape.seconds)
    except UnreadableAudio:
        pass
    assert tape.size <= len(damaged)
