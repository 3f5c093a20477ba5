"""Adapting to a channel helps if it can, reports the true gain, and otherwise keeps the bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import ROOT, DetectorConfig
from pipeline.detector import Detector
from pipeline.errors import BundleError
from pipeline.verdict.bundle import Bundle, Calibration, save_bundle
from pipeline.verdict.head import raw_scores
from tune.adapt import (
    PENALTIES,
    Adaptation,
    ScoredClips,
    _class_weights,
    _predict_left_out,
    adapt,
    compare,
    describe_change,
    fit_adaptation,
    groups_of,
    is_beyond_chance,
    main,
    nested_scores,
    with_record,
)
from tune.corpora.manifest import Clip, read_manifest, write_manifest
from tune.errors import CorpusError
from tune.reports.metrics import Interval, cllr, coverage_errors, eer

PAGES = ROOT.parent / "shared" / "field-dev"


SPREAD = np.random.default_rng(12345).normal(size=(20, 300)) / np.sqrt(20)
"""The matrix that makes the 300 inputs of a clip from its 20 hidden properties."""


def channel(
    count: int, *, seed: int, evidence: float = 1.5, offset: float = 0.0, unused: float = 0.0, per_speaker: int = 1
) -> ScoredClips:
    """Clips of a channel. Their scores are calibrated, except that `offset` is added.

    The scores are drawn from two normal distributions that are `evidence` standard deviations apart. Three of the
    hidden properties separate the classes by `unused` standard deviations more. The scores do not use these properties.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) // per_speaker % 2 == 0
    observed = rng.normal(size=count) + evidence * labels
    things = rng.normal(size=(count, 20))
    things[:, :3] += unused * labels[:, None]
    inputs = 0.9 * things @ SPREAD + 0.5 * rng.normal(size=(count, 300))
    return ScoredClips(
        labels,
        evidence * (observed - evidence / 2) + offset,
        inputs.astype(np.float32),
        np.ones(count),
        np.arange(count) // per_speaker,
        "speaker",
    )


def test_a_channel_that_shifts_all_scores_is_calibrated_anew() -> None:
    scored = channel(40, seed=0, evidence=2.5, offset=4.0)
    found = compare(scored, nested_scores(scored), draws=200)
    assert found["before"]["false_alarm_rate"].value > 0.5 > 0.2 > found["after"]["false_alarm_rate"].value
    assert is_beyond_chance(found["gain"]["cllr"], scored)
    adaptation = fit_adaptation(scored)
    assert adaptation.direction is None and adaptation.offset < -2
    fresh = channel(2000, seed=1, evidence=2.5, offset=4.0)
    assert cllr(fresh.labels, adaptation(fresh)) < 0.5 * cllr(fresh.labels, fresh.scores)
    # Leave-one-out predicts the error on new clips.
    assert found["after"]["cllr"].value == pytest.approx(cllr(fresh.labels, adaptation(fresh)), abs=0.15)


def test_the_head_is_moved_by_evidence_that_it_had_no_use_for() -> None:
    fresh = channel(1000, seed=999, unused=1.2)
    scored = channel(100, seed=3, unused=1.2)
    adaptation = fit_adaptation(scored)
    assert adaptation.direction is not None
    assert eer(fresh.labels, adaptation(fresh)) < eer(fresh.labels, fresh.scores) - 0.04
    assert cllr(fresh.labels, adaptation(fresh)) < cllr(fresh.labels, fresh.scores) - 0.08
    # Leave-one-out predicts the error on new clips. With only 20 clips nothing can be said, so the head is not moved.
    after = nested_scores(scored)
    assert cllr(scored.labels, after) == pytest.approx(cllr(fresh.labels, adaptation(fresh)), abs=0.15)
    assert fit_adaptation(scored.of(np.arange(20))).direction is None


def test_where_there_is_nothing_to_learn_little_is_lost_and_nothing_is_claimed() -> None:
    fresh = channel(4000, seed=99)
    claimed = 0
    for seed in range(12):
        scored = channel(20 if seed % 2 else 50, seed=seed)
        found = compare(scored, nested_scores(scored), draws=200)["gain"]["cllr"]
        claimed += is_beyond_chance(found, scored)
        assert cllr(fresh.labels, fit_adaptation(scored)(fresh)) < cllr(fresh.labels, fresh.scores) + 0.12
    assert claimed == 0


def test_a_large_class_does_not_make_up_for_a_small_one() -> None:
    """A gain that 108 clips show in two equal classes may be chance if one class has only 8 clips."""

    def scored(bonafide: int, spoof: int) -> ScoredClips:
        count = bonafide + spoof
        nothing = np.zeros(count)
        return ScoredClips(
            np.arange(count) >= bonafide, nothing, np.zeros((count, 1), np.float32), nothing, np.arange(count)
        )

    gain = Interval(0.05, 0.0, 0.1)
    assert is_beyond_chance(gain, scored(54, 54))
    assert not is_beyond_chance(gain, scored(8, 100)) and not is_beyond_chance(gain, scored(100, 8))
    # 8 and 100 clips are as certain as 15 of each class.
    for value in (0.08, 0.11):
        of_both = [is_beyond_chance(Interval(value, 0.0, 0.2), clips) for clips in (scored(8, 100), scored(15, 15))]
        assert of_both == [value > 0.1] * 2


def test_labels_at_random_are_not_learnt() -> None:
    for seed in range(4):
        scored = channel(60, seed=seed, evidence=2.0, unused=1.0)
        shuffled = replace(scored, labels=np.random.default_rng(seed).permutation(scored.labels))
        assert cllr(shuffled.labels, nested_scores(shuffled)) > 0.85


def test_a_voice_is_no_evidence_once_speakers_are_left_out() -> None:
    """There are ten clips of each of ten speakers. All clips of a speaker have the same class. So the voice shows the
    label, except for new speakers."""
    scored = channel(100, seed=0, evidence=0.2, per_speaker=10)
    voices = np.random.default_rng(5).normal(size=(10, 300)).astype(np.float32)
    scored = replace(scored, inputs=scored.inputs + 2 * voices[scored.groups])
    by_speaker = cllr(scored.labels, nested_scores(scored))
    by_clip = cllr(scored.labels, nested_scores(replace(scored, groups=np.arange(100))))
    assert by_clip < 0.5 < 0.85 < by_speaker


def test_leaving_out_in_closed_form_is_leaving_out() -> None:
    scored = channel(30, seed=2, unused=0.5, per_speaker=3)
    weights, residuals = _class_weights(scored.labels), np.random.default_rng(0).normal(size=30)
    products = (scored.inputs @ scored.inputs.T).astype(np.float64) / 300
    for penalty in (PENALTIES[0], PENALTIES[-1]):
        found = _predict_left_out(products, residuals, weights, scored.groups, penalty)
        for group in range(10):
            out = scored.groups == group
            of_others = products[np.ix_(~out, ~out)] + penalty * np.diag(1 / weights[~out])
            expected = products[np.ix_(out, ~out)] @ np.linalg.solve(of_others, residuals[~out])
            assert found[out] == pytest.approx(expected)


def test_whole_sites_are_left_out_where_enough_are_named() -> None:
    clips = [
        Clip(Path(f"{site}-{label}-{number}.wav"), label, f"{label}-{number}", site=f"site{site}")
        for site in range(5)
        for label in ("bonafide", "spoof")
        for number in range(3)
    ]
    groups, unit, may_move = groups_of(clips)
    assert unit == "site" and groups.tolist() == np.repeat(range(5), 6).tolist() and may_move
    assert groups_of([clip for clip in clips if clip.site in ("site0", "site1", "site2")])[1:] == ("clip", False)


def test_clips_are_left_out_by_speaker_where_enough_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    clips = [
        Clip(Path(f"{label}{number}"), label, f"{label} {number // 2}")
        for label in ("bonafide", "spoof")
        for number in range(8)
    ]
    groups, unit, may_move = groups_of(clips)
    assert unit == "speaker" and len(set(groups)) == 8 and may_move
    assert capsys.readouterr().err == ""
    groups, unit, may_move = groups_of([replace(clip, speaker=clip.label) for clip in clips])
    assert unit == "clip" and len(set(groups)) == 16 and not may_move
    assert "fewer than 4 independent speakers" in capsys.readouterr().err
    groups, unit, may_move = groups_of([replace(clip, speaker="") for clip in clips])
    assert unit == "clip" and len(set(groups)) == 16 and may_move
    assert "16 of 16 clips name neither speaker nor site" in capsys.readouterr().err
    groups, unit, may_move = groups_of([replace(clip, speaker=clip.speaker * clip.is_spoof) for clip in clips])
    assert unit == "speaker" and len(set(groups)) == 8 + 4 and may_move
    assert "8 of 16 clips name neither speaker nor site" in capsys.readouterr().err


@pytest.mark.parametrize("speaker", ["", "ann"])
def test_an_utterance_and_a_copied_file_are_left_out_as_a_whole(speaker: str) -> None:
    clips = [
        Clip(Path(f"{label}{number}"), label, speaker, pair_id=str(number) if number < 2 else "", sha256=f"{label}{n}")
        for label in ("bonafide", "spoof")
        for number, n in ((0, 0), (1, 1), (2, 2), (3, 2), (4, 4))
    ]
    groups = groups_of(clips)[0]
    assert len(set(groups)) == 6
    assert groups[0] == groups[5] and groups[1] == groups[6] and groups[2] == groups[3] and groups[7] == groups[8]


def test_the_head_is_not_moved_by_the_voices_of_few_speakers() -> None:
    """With three speakers of each class, the voices would show the label of clips that are left out one by one."""
    voices = np.random.default_rng(5).normal(size=(6, 300)).astype(np.float32)
    scored = channel(96, seed=0, per_speaker=16)
    scored = replace(scored, inputs=scored.inputs + 2 * voices[scored.groups], groups=np.arange(96))
    assert fit_adaptation(scored).direction is not None
    few = replace(scored, may_move=False)
    assert fit_adaptation(few).direction is None
    assert cllr(few.labels, nested_scores(few)) > cllr(few.labels, nested_scores(scored)) + 0.2


@pytest.mark.parametrize("head", ["linear", "quadratic", "tuned", "mlp"])
def test_a_correction_is_added_to_any_head(head: str) -> None:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    arrays = {
        "linear": {"weight": draw(20), "bias": draw(1)},
        "quadratic": {
            "projection": draw(20, 4),
            "origin": draw(4),
            "quadratic": draw(4, 4),
            "weight": draw(4),
            "bias": draw(1),
        },
        "tuned": {
            "weight": draw(20),
            "bias": draw(1),
            "hidden": draw(2, 8, 3),
            "hidden_bias": draw(2, 3),
            "output": draw(2, 3),
        },
        "mlp": {"weight_0": draw(20, 3), "bias_0": draw(3), "weight_1": draw(3, 1), "bias_1": draw(1)},
    }[head]
    inputs, correction = draw(7, 20), draw(20)
    corrected = arrays | {"correction": correction}
    assert raw_scores(corrected, inputs) == pytest.approx(raw_scores(arrays, inputs) + inputs @ correction, abs=1e-4)


def test_a_head_for_narrow_bands_may_answer_only_if_it_tells_the_classes_apart() -> None:
    shipped = Bundle.load(DetectorConfig().bundle_path)
    assert shipped.info.narrow is not None
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2 == 1
    dimension = len(shipped.arrays["mean"])
    scored = ScoredClips(
        labels, rng.normal(size=60), np.zeros((60, dimension), np.float32), np.ones(60), np.arange(60), "clip"
    )
    for after, trusted in ((rng.normal(size=60) + 4 * labels, True), (rng.normal(size=60), False)):
        narrow = shipped.info.narrow.model_copy(update={"trusted": not trusted})
        before = replace(shipped, info=shipped.info.model_copy(update={"narrow": narrow}))
        info, _ = adapt(before, Adaptation(1.0, 0.0, None), scored, after, narrow=True)
        assert info.narrow is not None and info.narrow.trusted == trusted
        assert info.calibration == shipped.info.calibration
        # The user is told when the answers change.
        changed = describe_change(before.info, info, narrow=True, is_moved=False)
        may = "may now answer Real or Fake" if trusted else "may no longer answer Real or Fake"
        assert "calibrated again, not moved. For narrow bands" in changed and may in changed
        assert "answer" not in describe_change(info, info, narrow=True, is_moved=False)


def test_certainty_is_that_of_the_adapted_scores() -> None:
    """Scores of the service are compared with the metric `coverage`, so it must have their scale."""
    shipped = Bundle.load(DetectorConfig().bundle_path)
    scored = channel(40, seed=0, evidence=2.5)
    after = 10 * scored.scores
    wide, narrow = (
        adapt(shipped, Adaptation(10.0, 0.0, None), scored, after, narrow=is_narrow)[0] for is_narrow in (False, True)
    )
    assert wide.metrics["coverage"] == coverage_errors(scored.labels, after) != shipped.info.metrics["coverage"]
    assert narrow.metrics["coverage"] == shipped.info.metrics["coverage"]


def test_a_second_adaptation_keeps_the_record_of_the_first() -> None:
    metrics: dict[str, object] = {"eer": 0.1}
    for number in range(3):
        metrics = with_record(metrics, {"number": number})
        assert metrics["adapted"] == {"number": number}
    assert metrics["adapted_before"] == [{"number": 0}, {"number": 1}]


def test_a_bundle_without_a_card_is_refused_before_the_work(tmp_path: Path) -> None:
    shutil.copytree(DetectorConfig().bundle_path, tmp_path / "bundle")
    (tmp_path / "bundle" / "model_card.md").unlink()
    with pytest.raises(BundleError, match=r"bundle has no model_card\.md"):
        main([f"--bundle={tmp_path / 'bundle'}", f"--manifest={tmp_path / 'm.csv'}", f"--out={tmp_path / 'out'}"])


@pytest.fixture(scope="module")
def some_of_a_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten recordings and ten spoofs of a page with many speakers, from the split `dev`."""
    clips = [clip for clip in read_manifest(PAGES / "manifest.csv") if clip.split == "dev" and clip.site == "edresson"]
    chosen = [
        clip
        for spoof in (False, True)
        for clip in {clip.speaker: clip for clip in clips if clip.is_spoof is spoof}.values()
    ]
    by_class = [[clip for clip in chosen if clip.is_spoof is spoof][:10] for spoof in (False, True)]
    folder = tmp_path_factory.mktemp("mine")
    write_manifest(folder / "mine.csv", by_class[0] + by_class[1])
    return folder / "mine.csv"


@pytest.mark.skipif(not PAGES.exists(), reason="the clips of the pages are not here")
def test_a_bundle_off_its_scale_is_brought_back_and_serves(
    some_of_a_page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Bundle.load(DetectorConfig().bundle_path)
    wrong = shipped.info.calibration
    info = shipped.info.model_copy(update={"calibration": Calibration(scale=wrong.scale, offset=wrong.offset - 8)})
    save_bundle(tmp_path / "shifted", info, shipped.arrays, "# shifted\n", shipped.front)
    out = tmp_path / "adapted"
    main([f"--bundle={tmp_path / 'shifted'}", f"--manifest={some_of_a_page}", f"--out={out}"])
    printed = capsys.readouterr()
    assert "| EER % |" in printed.out and "its head calibrated again" in printed.out and str(out) in printed.err
    adapted = Bundle.load(out)
    record = adapted.info.metrics["adapted"]
    assert record["after"]["cllr"]["value"] < record["before"]["cllr"]["value"]
    assert (record["bonafide"], record["spoof"]) == (10, 10)
    assert "## Adapted to a channel" in (out / "model_card.md").read_text()
    # A running service already extracts these features. So it accepts the bundle without a restart.
    assert adapted.info.features == shipped.info.features
    assert adapted.info.backbone_sha256 == shipped.info.backbone_sha256
    assert len(adapted.info.corpus["clips"]) == len(shipped.info.corpus["clips"]) + 20 - known(shipped, some_of_a_page)
    clips = read_manifest(some_of_a_page)
    before, after = (Detector(DetectorConfig(bundle=folder)) for folder in (tmp_path / "shifted", out))
    scores = np.array([[d.predict(clip.path.read_bytes()).score for d in (before, after)] for clip in clips[::3]])
    labels = np.array([clip.is_spoof for clip in clips[::3]])
    assert (scores[:, 1] > scores[:, 0]).all()
    assert cllr(labels, scores[:, 1]) < cllr(labels, scores[:, 0])


def known(bundle: Bundle, manifest: Path) -> int:
    """How many of the clips the bundle was trained on."""
    trained_on = set(bundle.info.corpus["clips"])
    names = [hashlib.sha256(clip.path.read_bytes()).hexdigest()[:12] for clip in read_manifest(manifest)]
    return sum(name in trained_on for name in names)


@pytest.mark.skipif(not PAGES.exists(), reason="the clips of the pages are not here")
def test_a_bundle_that_nothing_helps_stays_as_it_is(some_of_a_page: Path, tmp_path: Path) -> None:
    clips = read_manifest(some_of_a_page)
    rng = np.random.default_rng(0)
    labels = rng.permutation([clip.label for clip in clips])
    write_manifest(
        tmp_path / "random.csv", [replace(c, label=label, speaker="") for c, label in zip(clips, labels, strict=True)]
    )
    shutil.copytree(DetectorConfig().bundle_path, tmp_path / "bundle")
    sizes = {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    arguments = [f"--bundle={tmp_path / 'bundle'}", f"--out={tmp_path / 'out'}"]
    # The labels are random. For a bundle with confident scores, less confident scores would be a gain. So this bundle
    # gets a scale near 0: its scores are not confident, and nothing can be gained.
    info = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    info["calibration"] = {"scale": 1e-6, "offset": 0.0}
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(info))
    sizes[tmp_path / "bundle" / "bundle.json"] = (tmp_path / "bundle" / "bundle.json").read_bytes()
    with pytest.raises(CorpusError, match="do not show that an adapted bundle is better"):
        main([*arguments, f"--manifest={tmp_path / 'random.csv'}"])
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in sizes} == sizes
    write_manifest(tmp_path / "few.csv", [clip for clip in clips if clip.is_spoof] + clips[:3])
    with pytest.raises(CorpusError, match="there are 3 bonafide clips to judge by, and at least 8 are needed"):
        main([*arguments, f"--manifest={tmp_path / 'few.csv'}"])
