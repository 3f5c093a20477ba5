from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.types import Quality, Segment
from pipeline.verdict.bundle import Calibration, Uncertainty
from pipeline.verdict.windows import total_seconds
from tune.errors import CorpusError
from tune.training.evidence import Measured, cut_short, fit_uncertainty, narrow_uncertainty, variance_of_windows, words

SPEECH = (Segment(1.0, 2.0), Segment(3.0, 5.0))
COUNT = 4_000


def measured(score: float, *, seconds: float = 4.0, snr_db: float = 30.0, novelty: float = 1.0) -> Measured:
    return Measured(np.array([score]), novelty, Quality(snr_db, 8_000.0, 20.0), False, seconds)


@pytest.mark.parametrize(("seconds", "ends"), [(0.5, [1.5]), (1.0, [2.0]), (1.5, [2.0, 3.5]), (9.0, [2.0, 5.0])])
def test_a_cut_holds_the_first_seconds_of_speech(seconds: float, ends: list[float]) -> None:
    cut = cut_short(SPEECH, seconds)
    assert [segment.end for segment in cut] == ends
    assert total_seconds(cut) == min(seconds, 3.0)


def test_uncertainty_is_what_cuts_noise_and_strangeness_move_scores_by() -> None:
    """Scores are drawn from the model with known variances. The fit must find these variances."""
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 1.5, COUNT)
    whole = [measured(score, snr_db=20.0, novelty=2.0) for score in raw]
    # The scale is 2, so calibrated variances are four times as large: 0.8 for a window is 0.2 in raw scores.
    cuts = [(w, measured(w.score + rng.normal(0, np.sqrt(0.2 * (4 / 1 - 1))), seconds=1.0)) for w in whole]
    noisy = [(w, measured(w.score + rng.normal(0, np.sqrt(0.5 * 1.5**2)), snr_db=5.0, novelty=2.0)) for w in whole]
    strange = [
        (w, measured(w.score + rng.normal(0, np.sqrt(0.3 * np.log(3) ** 2)), snr_db=20.0, novelty=6.0)) for w in whole
    ]
    found = fit_uncertainty(whole, cuts, noisy + strange, Calibration(scale=2, offset=0.3), 4.0)
    assert found.score_variance == pytest.approx(9, rel=0.1)
    assert found.window_variance == pytest.approx(0.8, rel=0.1)
    assert (found.snr_db, found.novelty) == (20, 2)
    assert found.snr_variance == pytest.approx(2, rel=0.15)
    assert found.novelty_variance == pytest.approx(1.2, rel=0.15)


def test_a_narrow_band_has_variances_of_its_own_and_those_of_faults_by_its_scale() -> None:
    rng = np.random.default_rng(0)
    whole = [measured(score) for score in rng.normal(size=100)]
    cuts = [(one, measured(one.score + 1, seconds=1.0)) for one in whole]
    noisy = [(one, measured(one.score + 2, snr_db=5.0)) for one in whole]
    wide = fit_uncertainty(whole, cuts, noisy, Calibration(scale=2, offset=0), 4.0)
    received = [measured(3 * one.score, snr_db=12.0) for one in whole]
    line_cuts = [(one, measured(one.score + 3, seconds=1.0)) for one in received]
    again = [(one, measured(one.score + rng.normal(0, np.sqrt(2 * 0.7)))) for one in received * 40]
    narrow = narrow_uncertainty(wide, 2.0, received, line_cuts, again, 1.0, 4.0)
    assert narrow.line_variance == pytest.approx(0.7, rel=0.1)
    # A cut to a second lacks three windows' worth of variance. Its score moves by 2 * 1 and by 1 * 3.
    assert wide.window_variance == pytest.approx(4 / 3)
    assert narrow.window_variance == pytest.approx(9 / 3)
    assert narrow.score_variance == pytest.approx(wide.score_variance * 9 / 4)
    assert narrow.snr_variance == pytest.approx(wide.snr_variance / 4) and wide.snr_variance > 0
    assert narrow.snr_db == 12


def test_without_a_clip_to_cut_nothing_is_assumed() -> None:
    with pytest.raises(CorpusError, match="no clip that was held out is long enough"):
        variance_of_windows([], 1.0, 4.0)


def test_words_are_those_that_serving_gives() -> None:
    uncertainty = Uncertainty(
        score_variance=9, window_variance=1, snr_db=20, snr_variance=2, novelty=2, novelty_variance=1, line_variance=5
    )
    scores = [-6.0, -2.5, 0.0, 2.5, 6.0]
    wide = words([measured(score) for score in scores], Calibration(scale=1, offset=0), uncertainty, 4.0)
    assert wide == ["Real", "Real", "Inconclusive", "Fake", "Fake"]
    over_lines = [replace(measured(score), narrow=True) for score in scores]
    narrow = words(over_lines, Calibration(scale=1, offset=0), uncertainty, 4.0)
    assert narrow == ["Real", "Inconclusive", "Inconclusive", "Inconclusive", "Fake"]
    few = [measured(score, seconds=0.5) for score in scores]
    assert set(words(few, Calibration(scale=1, offset=0), uncertainty, 4.0)) == {"Inconclusive"}
