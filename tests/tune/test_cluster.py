"""The commands that run on Ray, on one real cluster of two nodes with one CPU each.

Both CPUs extract the features that most tests share. If a test needs other features, it extracts them with one actor,
because each actor must load the networks first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from numpy.typing import NDArray
from ray._private import state as ray_state
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from pipeline.config import ROOT, DetectorConfig, Limits
from pipeline.detector import Detector
from pipeline.networks.front import FRONTS, published_front
from pipeline.networks.spec import load_spec
from pipeline.verdict.bundle import Bundle
from tests.audio import encode
from tests.graph import family, started
from tests.nodes import Sleeper, two_nodes
from tests.tune.synthetic import stand_in_for_hifigan, write_corpus
from tune import stress
from tune.cluster import map_with_actors
from tune.corpora.augment import CONDITIONS
from tune.corpora.manifest import Clip, read_manifest, write_manifest
from tune.errors import CorpusError
from tune.evaluate import main as evaluate_main
from tune.extract import Recipe, extract
from tune.extract import main as extract_main
from tune.kfold import main as kfold_main
from tune.search import SearchConfig, search
from tune.search import main as search_main
from tune.train import main as train_main
from tune.training.folds import FoldsConfig
from tune.training.table import Table

FEATURES = "sound-sentry-45"

# Ray itself causes these warnings.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*", r"ignore::FutureWarning:ray\..*")


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[str]:
    """The address of a cluster to which this process is connected."""
    with two_nodes() as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, sample_wav: bytes) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), sample_wav)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def extracted(corpus: Path, cache: Path) -> Table:
    recipe = Recipe(load_spec(FEATURES), DetectorConfig())
    table, bad = extract(read_manifest(corpus), recipe, cache_folder=cache)
    assert not bad
    return table


def stamps(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}


def test_two_actors_work_side_by_side() -> None:
    """Measures only the time when both actors work. How long they take to start depends on the machine."""
    batches: list[tuple[float, float]] = []
    sent: list[int] = []

    def together() -> list[float]:
        """When batches began that began before the one before had ended."""
        return [begun for (_, end), (begun, _) in pairwise(sorted(batches)) if begun < end]

    def rows() -> Iterator[int]:
        """Rows until both actors have worked for 10 s."""
        until = time.monotonic() + 300
        while len(together()) < 40 and time.monotonic() < until:
            sent.append(len(sent))
            yield sent[-1]

    for batch in map_with_actors(Sleeper, (), rows(), actors=2):
        batches.append(batch)
    assert len(batches) == len(sent)
    assert together(), "the second actor did not start"
    both = together()[0]
    batches.sort()
    last_start = batches[-1][0]
    busy = sum(max(0.0, min(end, last_start) - max(start, both)) for start, end in batches)
    assert busy / (last_start - both) >= 1.7


def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tune.evaluate", f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path / 'out'}"]
    clips = [Clip(tmp_path / f"{label}.wav", label, "x") for label in ("bonafide", "spoof")]
    write_manifest(tmp_path / "m.csv", clips)
    for clip in clips:
        clip.path.touch()
    ended = subprocess.run([*command, "--address=127.0.0.1:9"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "There is no Ray cluster at 127.0.0.1:9" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("temporary", ["usual", "long"])
def test_a_private_cluster_is_reached_from_this_machine_only(temporary: str, tmp_path: Path) -> None:
    """This must also work if the path of the temporary folder is too long for Ray's sockets."""
    program = """
import sys, ray
from tune.cluster import connect
connect(None)
print(ray.get(ray.remote(lambda: "up").remote()), flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    folder = {"TMPDIR": str(tmp_path)} if temporary == "long" else {}

    @contextmanager
    def connected() -> Iterator[int]:
        with subprocess.Popen(
            command, cwd=ROOT, env=os.environ | folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"up\n":
                raise RuntimeError("Ray did not start: see what the program printed")
            yield process.pid
            process.communicate()

    with started(connected) as pid:
        found = listening(pid)
    assert len(found) > 5 and set(found) <= LOOPBACK


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1, as the kernel writes them."""


def listening(pid: int) -> list[str]:
    """The addresses on which a process and its descendants listen for TCP, as the kernel writes them."""
    sockets = set()
    for member in family(pid):
        for file in Path("/proc").glob(f"{member}/fd/*"):
            with suppress(OSError):
                sockets.add(os.readlink(file))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    # The second column has the local address and port. 0A in the fourth means that the socket listens. The tenth has
    # the inode of the socket.
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_features_are_those_that_serving_computes(extracted: Table, corpus: Path) -> None:
    from pipeline.audio.decode import decode
    from pipeline.stages.extract import TkanExtractor
    from pipeline.stages.vad import VoiceActivityDetector

    config = DetectorConfig()
    recording = decode(extracted.clips[3].path.read_bytes(), config.limits)
    speech = VoiceActivityDetector(config).detect(recording)
    expected = TkanExtractor(config, load_spec(FEATURES)).extract(recording, speech, None).vectors
    assert extracted.vectors[extracted.rows(np.array([3]))] == pytest.approx(expected, abs=1e-4)


def test_a_second_run_computes_nothing(extracted: Table, corpus: Path, cache: Path) -> None:
    before = stamps(cache)
    assert len(before) == 24
    table, _ = extract(read_manifest(corpus), Recipe(load_spec(FEATURES), DetectorConfig()), cache_folder=cache)
    assert stamps(cache) == before
    assert table.digest == extracted.digest


def test_recordings_are_vocoded_once_and_spoofs_not_at_all(
    extracted: Table, corpus: Path, cache: Path, tmp_path: Path
) -> None:
    stand_in_for_hifigan(tmp_path / "packages")
    shutil.copytree(cache, tmp_path / "cache")
    clips, recipe = read_manifest(corpus), Recipe(load_spec(FEATURES), DetectorConfig())

    def extract_vocoded() -> tuple[Table, dict[Path, int]]:
        table, bad = extract(
            clips, recipe, vocoded=True, cache_folder=tmp_path / "cache", packages=tmp_path / "packages", actors=1
        )
        assert not bad
        return table, {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}

    table, written = extract_vocoded()
    assert len(written) == 24 + 2 * 12 and {path.suffix for path in written} == {".safetensors"}
    for number, clip in enumerate(table.clips):
        of_clip = table.owner == number
        assert set(table.copy[of_clip]) == ({0} if clip.is_spoof else {0, 1, 2})
        assert (table.spoof[of_clip] == (clip.is_spoof | (table.copy[of_clip] == 2))).all()
    assert (table.vectors[table.copy == 0] == extracted.vectors).all()
    recordings, partners, copies = (
        table.vectors[(table.copy == copy) & ~table.labels[table.owner]] for copy in range(3)
    )
    assert 2 * distance(recordings, partners) < distance(recordings, copies)

    # A lost file is made again, with the same content. No other file is made again.
    lost = max(written, key=written.__getitem__)
    lost.unlink()
    again, rewritten = extract_vocoded()
    assert again.digest == table.digest
    assert {path for path in rewritten if rewritten[path] != written[path]} == {lost}


def distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.linalg.norm((first.mean(axis=0) - second.mean(axis=0)) / first.std(axis=0)))


@pytest.mark.slow  # it starts another cluster
def test_extraction_killed_half_way_goes_on_and_computes_nothing_twice(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tune.extract", f"--manifest={corpus}", f"--features={FEATURES}"]
    command += [f"--cache={tmp_path}", "--actors=1"]
    kill_when(command, lambda: len(stamps(tmp_path)) >= 3)
    before = stamps(tmp_path)
    assert 3 <= len(before) < 24
    extract_main([*command[3:], f"--out={tmp_path / 'arrays'}"])
    after = stamps(tmp_path)
    assert len(after) == 24
    assert {name: after[name] for name in before} == before
    features, labels = (np.load(tmp_path / "arrays" / name) for name in ("features.npy", "labels.npy"))
    assert len(features) == len(labels) and set(labels) == {0, 1}


def test_bad_files_are_listed_and_the_rest_goes_on_unless_it_is_of_one_class(
    corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    clips = read_manifest(corpus)[:4]
    (tmp_path / "noise.wav").write_bytes(b"this is not audio" * 100)
    (tmp_path / "silence.wav").write_bytes(encode(np.zeros(32_000, np.float32)))
    clips += [Clip(tmp_path / name, "spoof") for name in ("noise.wav", "silence.wav")]
    write_manifest(tmp_path / "manifest.csv", clips)
    arguments = [f"--manifest={tmp_path / 'manifest.csv'}", f"--cache={tmp_path / 'cache'}"]
    extract_main([*arguments, f"--features={FEATURES}", "--actors=1"])
    printed = capsys.readouterr()
    assert "noise.wav" in printed.err and "silence.wav: there is no speech" in printed.err
    assert printed.out.startswith("4 clips")
    with pytest.raises(CorpusError, match="no spoof clip has features"):
        extract([clips[0], clips[-1]], Recipe(load_spec(FEATURES), DetectorConfig()), cache_folder=tmp_path / "cache")


def test_a_clip_that_was_too_long_has_features_as_soon_as_the_limits_allow_it(corpus: Path, tmp_path: Path) -> None:
    clips = read_manifest(corpus)[:3]
    sound = np.frombuffer(b"".join(clip.path.read_bytes()[44:] for clip in clips), "<i2") / 2**15
    (tmp_path / "long.wav").write_bytes(encode(sound))
    clips.append(Clip(tmp_path / "long.wav", "spoof"))

    def refused(config: DetectorConfig) -> dict[str, str]:
        _, bad = extract(clips, Recipe(load_spec(FEATURES), config), cache_folder=tmp_path / "cache", actors=1)
        return {path.name: error for path, error in bad.items()}

    narrow = refused(DetectorConfig(limits=Limits(max_duration_seconds=3)))
    assert narrow == {"long.wav": "The recording is longer than 3 seconds. Send it in parts."}
    assert refused(DetectorConfig()) == {}


@pytest.mark.parametrize(
    ("folds", "impossible", "named"),
    [
        ("k: 4", "k: 13", "^the corpus is too small for 13 folds"),
        # There are 12 speakers, so each fold has 9 speakers for training.
        ("k: 3", "k: 10", "^calibration without the test part of fold 1 of 4: .* too small for 10 folds"),
    ],
    ids=["tested", "calibrated"],
)
@pytest.mark.parametrize("command", [kfold_main, train_main, search_main], ids=["kfold", "train", "search"])
def test_folds_that_cannot_be_made_are_refused_before_anything_is_extracted(
    command: Callable[[list[str]], None], folds: str, impossible: str, named: str, corpus: Path, tmp_path: Path
) -> None:
    config, nested = (grid(tmp_path), ["--nested"]) if command is search_main else (grid_free(tmp_path), [])
    config.write_text(config.read_text().replace(folds, impossible))
    arguments = [f"--config={config}", f"--manifest={corpus}", f"--cache={tmp_path / 'cache'}"]
    with pytest.raises(CorpusError, match=named):
        command([*arguments, f"--out={tmp_path / 'out'}", *nested])
    assert not (tmp_path / "cache").exists()


def test_what_is_wrong_in_a_fold_ends_the_command_with_its_own_sentence(
    corpus: Path, cache: Path, extracted: Table, tmp_path: Path
) -> None:
    config = grid_free(tmp_path)
    values = yaml.safe_load(config.read_text())
    values["estimator"] = {"head": {"kind": "mlp", "stop_share": 0.01}}
    config.write_text(yaml.safe_dump(values))
    for command in (train_main, kfold_main):
        with pytest.raises(CorpusError) as caught:
            command([f"--config={config}", f"--manifest={corpus}", f"--cache={cache}", f"--out={tmp_path / 'out'}"])
        assert caught.value.detail.startswith("early stopping needs 100 independent groups")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg: on Debian, apt-get install ffmpeg")
def test_background_lends_all_but_copies_of_recordings_and_has_no_copies(
    corpus: Path, cache: Path, extracted: Table, tmp_path: Path
) -> None:
    clips = read_manifest(corpus)
    others = tmp_path / "others.csv"
    background = [clip for clip in clips if clip.speaker in ("speaker0", "speaker1")]
    write_manifest(others, [replace(clip, pair_id="one" if clip.speaker == "speaker0" else "") for clip in background])
    write_manifest(tmp_path / "mine.csv", [clip for clip in clips if clip not in background])
    config = grid_free(tmp_path)
    config.write_text(config.read_text() + "draws: 1\n")
    fresh = tmp_path / "cache"
    train_main(
        [
            f"--config={config}",
            f"--manifest={tmp_path / 'mine.csv'}",
            f"--background={others}",
            f"--cache={fresh}",
            f"--out={tmp_path / 'bundle'}",
            "--actors=1",
        ]
    )
    # The corpus has 20 clips with one copy each. The background has no copies: two recordings and one spoof. The other
    # spoof is not used, because it has a pair_id, so it is a copy of a recording.
    assert sorted(name.endswith("-1.safetensors") for name in stamps(fresh)) == [False] * 23 + [True] * 20
    trained_on = Bundle.load(tmp_path / "bundle").info.corpus
    assert (trained_on["bonafide"], trained_on["spoof"], trained_on["background"]) == (12, 11, 3)
    card = (tmp_path / "bundle" / "model_card.md").read_text()
    assert "3 of the clips are background" in card
    assert "Fewer than 20 clips have several windows" in card  # all clips have 2 s


def grid(tmp_path: Path, **changes: Any) -> Path:
    """Write the configuration of a grid with four points. `configs/grid.yaml` has too many folds for these speakers."""
    config = {
        "features": FEATURES,
        "folds": {"by": "speaker", "k": 4},
        "calibration": {"k": 3},
        "estimator": {"head": {"kind": "logistic"}},
        "search": {
            "kind": "grid",
            "space": {"estimator.head.c": [0.001, 1.0], "estimator.imbalance": ["weights", "smote"]},
        },
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return path


@pytest.fixture
def busy_node() -> Iterator[str]:
    """The id of the node of this process, while its CPU is reserved."""
    node: str = ray.get_runtime_context().get_node_id()
    taken = placement_group([{"CPU": 1}], strategy="STRICT_PACK", _soft_target_node_id=node)
    assert taken.wait(60) and list(placement_group_table(taken)["bundles_to_node_id"].values()) == [node]
    yield node
    remove_placement_group(taken)


def test_a_grid_search_on_another_node(
    corpus: Path, cache: Path, extracted: Table, tmp_path: Path, address: str, busy_node: str
) -> None:
    out = tmp_path / "search"
    search_main(
        [
            f"--config={grid(tmp_path)}",
            f"--manifest={corpus}",
            f"--cache={cache}",
            f"--out={out}",
            f"--address={address}",
            "--nested",
        ]
    )
    header, *rows = (out / "results.csv").read_text().splitlines()
    assert header == "estimator.head.c,estimator.imbalance,eer,auc,folds" and len(rows) == 4
    errors = [float(row.split(",")[2]) for row in rows]
    assert errors == sorted(errors)
    assert (out / "parallel.png").read_bytes().startswith(b"\x89PNG")
    assert list(out.rglob("events.out.tfevents*"))
    quoted = json.loads((out / "nested.json").read_text())["eer"]
    assert quoted["low"] <= quoted["value"] <= quoted["high"]
    trials = {json.loads(path.read_text().splitlines()[-1])["pid"] for path in out.rglob("result.json")}
    nodes = {actor["Address"]["NodeID"] for actor in ray_state.actors().values() if actor["Pid"] in trials}
    assert len(nodes) == 1 and busy_node not in nodes
    # `tune.train` accepts the best configuration.
    train_main(
        [f"--config={out / 'best.yaml'}", f"--manifest={corpus}", f"--cache={cache}", f"--out={tmp_path / 'bundle'}"]
    )
    assert Bundle.load(tmp_path / "bundle").info.features.name == FEATURES


@pytest.mark.slow  # it runs a search four times
def test_a_search_killed_in_the_middle_ends_with_the_same_table(
    corpus: Path, cache: Path, extracted: Table, tmp_path: Path
) -> None:
    config = grid(tmp_path, search={"kind": "grid", "space": {"estimator.head.c": [10.0**-n for n in range(12)]}})
    arguments = [f"--config={config}", f"--manifest={corpus}", f"--cache={cache}"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "tune.search", *arguments, f"--out={killed}"]
    kill_when(command, lambda: len(list(killed.rglob("result.json"))) >= 2)
    assert not (killed / "results.csv").exists()
    # The state of the copy is cut off, as if Ray was killed while it wrote its state.
    cut = shutil.copytree(killed, tmp_path / "cut")
    for state in cut.glob("trials/experiment_state-*.json"):
        os.truncate(state, state.stat().st_size // 2)
    computed = {path: path.stat().st_mtime_ns for out in (killed, cut) for path in complete_points(out)}
    for out in (killed, cut):
        search_main([*arguments, f"--out={out}", "--resume"])
    search_main([*arguments, f"--out={whole}"])
    for out in (killed, cut):
        assert (out / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert computed == {path: path.stat().st_mtime_ns for path in computed}


def complete_points(out: Path) -> list[Path]:
    """The files with the scores of all points of a search that are complete."""
    found = [path for path in out.glob("scores/*.npz") if not np.isnan(np.load(path)["scores"]).any()]
    assert found
    return found


def test_optuna_proposes_and_asha_stops(table: Table, tmp_path: Path) -> None:
    config = SearchConfig.model_validate(
        {
            "features": "synthetic",
            "folds": {"k": 6},
            "asha": True,
            "search": {
                "kind": "optuna",
                "samples": 6,
                "space": {
                    "estimator.head.penalty": {"low": 1e-3, "high": 1e6, "log": True},
                    "estimator.imbalance": ["none", "weights"],
                },
            },
        }
    )
    rows = search(config, {"synthetic": table}, tmp_path / "optuna")
    assert len(rows) == 6 and len({row["estimator.head.penalty"] for row in rows}) == 6
    complete = [row["folds"] == 6 for row in rows]
    # Trials that were stopped come last, whatever their error was when they stopped. They did not finish the
    # cross-validation, so their errors cannot be compared with the others.
    assert complete == sorted(complete, reverse=True) and complete[0]
    assert config.at({"estimator.head.penalty": 0.5}).folds == FoldsConfig(k=6)


def test_evaluation_scores_as_the_detector_does(corpus: Path, cache: Path, extracted: Table, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    train_main([f"--config={grid_free(tmp_path)}", f"--manifest={corpus}", f"--cache={cache}", f"--out={bundle}"])
    clips = read_manifest(corpus)
    (tmp_path / "noise.wav").write_bytes(b"this is not audio" * 100)
    clips += [Clip(tmp_path / "noise.wav", "bonafide", "x"), Clip(tmp_path / "gone.wav", "spoof", "y", "lost")]
    write_manifest(tmp_path / "manifest.csv", clips)
    arguments = [f"--manifest={tmp_path / 'manifest.csv'}", f"--bundle={bundle}", f"--out={tmp_path / 'out'}"]
    evaluate_main([*arguments, "--actors=1"])
    header, *rows = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert header == "path,label,score,probability,result,error" and len(rows) == 26
    verdict = Detector(DetectorConfig(bundle=bundle)).predict(clips[1].path.read_bytes())
    _, label, score, probability, result, error = rows[1].split(",")
    assert (label, result, error) == ("spoof", verdict.overall, "")
    assert float(score) == pytest.approx(verdict.score, abs=2e-4)
    assert float(probability) == pytest.approx(verdict.mean_probability, abs=2e-4)
    assert rows[24].startswith("noise.wav,bonafide,,,,") and rows[25].startswith("gone.wav,spoof,,,,")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["unscored"] == 2 and metrics["trained_on"] == 24 and metrics["clips"] == 26
    assert metrics["results"]["bonafide"]["error"] == 1
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 5 and "trained on 24" in report


def test_a_tuned_detector_is_made_by_one_command(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    """The first detector is trained neither on the sites held out nor on the split for tests. The second one is trained
    on all clips that can be read."""
    clips = []
    for number, clip in enumerate(read_manifest(corpus)):
        wave = np.frombuffer(clip.path.read_bytes()[44:], "<i2") / 2**15
        path = tmp_path / clip.path.name
        # The corpus is cut from a telephone call. A hiss is added, so that the band is wide.
        path.write_bytes(encode(wave + np.random.default_rng(number).normal(0, 0.003, len(wave))))
        site = number // 4  # each site has two recordings and two spoofs
        clips.append(replace(clip, path=path, site=f"site{site}", split="check" if site == 5 else "dev"))
    (tmp_path / "noise.wav").write_bytes(b"this is not audio" * 100)
    broken = replace(clips[-1], path=tmp_path / "noise.wav", split="dev")
    write_manifest(tmp_path / "manifest.csv", [broken, *clips])
    tuning = {"steps": 2, "batch_size": 8, "min_crop_seconds": 0.8, "max_crop_seconds": 1.0, "background_share": 0}
    front = {"first": tuning, "further": tuning, "held_out_share": 0.4, "held_out_clips": 2, "test_split": "check"}
    config = {"features": "tuned-fronts", "speakers_of": "site", "front": front}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "bundle"
    train_main([f"--config={tmp_path / 'train.yaml'}", f"--manifest={tmp_path / 'manifest.csv'}", f"--out={out}"])
    assert "left out: noise.wav: The file is in none" in capsys.readouterr().err
    bundle, held_out = Bundle.load(out), Bundle.load(tmp_path / "bundle-held-out")
    assert (len(bundle.info.corpus["clips"]), len(held_out.info.corpus["clips"])) == (24, 12)
    assert bundle.info.metrics == held_out.info.metrics
    assert bundle.info.metrics["of"] == "clips of 2 sites left out of training"
    assert bundle.info.backbone_sha256 != held_out.info.backbone_sha256
    assert bundle.front is not None
    first, second, published = (bundle.front[f"{name}.conv1.weight"] for name in FRONTS)
    assert not np.array_equal(first, second)
    assert np.array_equal(published, published_front().conv1.weight.detach().numpy())
    wide, narrow = (bundle.scorer(narrow=is_narrow) for is_narrow in (False, True))
    assert not np.allclose(wide.arrays["weight"], narrow.arrays["weight"])
    verdict = Detector(DetectorConfig(bundle=out)).predict(clips[0].path.read_bytes())
    assert verdict.mean_probability is not None


@pytest.fixture
def short_stress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test short: each fold has one site, and there are only one length and one channel."""
    monkeypatch.setattr(stress, "FOLDS", FoldsConfig(by="site"))
    monkeypatch.setattr(stress, "LENGTHS", (3,))
    monkeypatch.setattr(stress, "CONDITIONS", {"telephone": CONDITIONS["telephone"]})


def test_a_detector_is_put_under_stress(
    corpus: Path, cache: Path, extracted: Table, tmp_path: Path, short_stress: None
) -> None:
    clips = [replace(clip, site=f"site{number // 2 % 2}") for number, clip in enumerate(read_manifest(corpus))]
    write_manifest(tmp_path / "sites.csv", clips)
    (tmp_path / "card.md").write_text("# A card\n")
    arguments = [f"--config={grid_free(tmp_path)}", f"--cache={cache}", f"--out={tmp_path / 'out'}", "--actors=1"]
    extent = ["--clips=12", "--seconds=12", "--mixtures=4", f"--card={tmp_path / 'card.md'}"]
    stress.main([f"--manifest={tmp_path / 'sites.csv'}", *arguments, *extent])
    found = json.loads((tmp_path / "out" / "stress.json").read_text())
    assert {name: row["clips"] for name, row in found["robustness"].items()} == {"clean": 12, "telephone": 12}
    assert sum(found["false_alarms"]["3"].values()) == 4
    counts = {kind: re.findall(r"\d+", found["mixed"][f"{kind}_speakers"]) for kind in ("synthetic", "real")}
    assert {kind: sum(map(int, each)) for kind, each in counts.items()} == {"synthetic": 4, "real": 12}
    table = (tmp_path / "out" / "stress.md").read_text()
    assert (tmp_path / "card.md").read_text() == f"# A card\n\n{stress.HEADING}\n{stress.PREAMBLE}\n{table}"


def test_stress_without_enough_real_speech_is_refused_before_anything_is_extracted(
    corpus: Path, tmp_path: Path, short_stress: None
) -> None:
    clips = [replace(clip, site=f"site{number // 6}") for number, clip in enumerate(read_manifest(corpus))]
    write_manifest(tmp_path / "sites.csv", clips)
    arguments = [f"--manifest={tmp_path / 'sites.csv'}", f"--config={grid_free(tmp_path)}"]
    with pytest.raises(CorpusError, match="no site with 5 clips of real speech"):
        stress.main([*arguments, f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "cache").exists()


def grid_free(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"features": FEATURES, "folds": {"k": 4}, "calibration": {"k": 3}}))
    return path


def kill_when(command: list[str], reached: Callable[[], bool]) -> None:
    """Run a command in a separate process group until `reached()` is true. Then kill all its processes at once, like a
    power cut."""
    # A killed Ray leaves files in its temporary folder. They are deleted here. Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ss", dir="/tmp", ignore_cleanup_errors=True) as folder:
        _kill_when(command, reached, os.environ | {"TMPDIR": folder})


def _kill_when(command: list[str], reached: Callable[[], bool], environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not reached():
            assert process.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
