from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BundleError
from pipeline.verdict.bundle import Bundle, Calibration, NarrowBand, save_bundle
from tests.pipeline.verdict.test_aggregate import BUNDLE

ARRAYS = {"weight": np.arange(3, dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}


def test_a_bundle_survives_the_disk(tmp_path: Path) -> None:
    saved = save_bundle(tmp_path / "b", BUNDLE.info, ARRAYS, "# A folder named caf\udce9\n", BUNDLE.front)
    loaded = Bundle.load(tmp_path / "b")
    assert loaded.info == saved.info
    assert loaded.sha256 == saved.sha256
    np.testing.assert_array_equal(loaded.arrays["weight"], ARRAYS["weight"])


def test_the_head_for_a_narrow_band_has_arrays_of_its_own(tmp_path: Path) -> None:
    band = NarrowBand(
        head="linear",
        trusted=True,
        calibration=Calibration(scale=2.0, offset=0.5),
        uncertainty=BUNDLE.info.uncertainty,
    )
    info = BUNDLE.info.model_copy(update={"narrow": band})
    narrow = {f"narrow.{name}": array + 1 for name, array in ARRAYS.items()}
    bundle = save_bundle(tmp_path / "b", info, ARRAYS | narrow, "# Card\n", BUNDLE.front)
    for is_narrow in (False, True):
        scorer = bundle.scorer(narrow=is_narrow)
        assert scorer.is_narrow == is_narrow and set(scorer.arrays) == set(ARRAYS)
        np.testing.assert_array_equal(scorer.arrays["weight"], ARRAYS["weight"] + is_narrow)
    assert scorer.calibration == band.calibration
    assert not BUNDLE.scorer(narrow=True).is_narrow


def test_damage_is_refused(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", BUNDLE.info, ARRAYS, "# Card\n", BUNDLE.front)
    weights = tmp_path / "b" / "classifier.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BundleError, match="copy the bundle again"):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize(("right", "wrong"), [('"seed"', '"sead"'), ('"format": 7', '"format": 6')])
def test_a_bundle_with_an_unknown_key_or_of_another_format_says_what_to_do(
    right: str, wrong: str, tmp_path: Path
) -> None:
    save_bundle(tmp_path / "b", BUNDLE.info, ARRAYS, "# Card\n", BUNDLE.front)
    manifest = tmp_path / "b" / "bundle.json"
    manifest.write_text(manifest.read_text().replace(right, wrong))
    key = wrong.split('"')[1]
    with pytest.raises(BundleError, match=rf"bundle\.json.*{key}.*train it again"):
        Bundle.load(tmp_path / "b")


@pytest.mark.parametrize("place", ["none", "b/bundle.json"])
def test_a_bundle_that_is_missing_or_is_no_folder_says_what_to_do(place: str, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", BUNDLE.info, ARRAYS, "# Card\n", BUNDLE.front)
    with pytest.raises(BundleError, match=r"tune\.train"):
        Bundle.load(tmp_path / place)


def test_certainty_is_the_share_of_tested_clips_scored_less_certainly() -> None:
    rows = [{"answered": 1.0, "distance": 0.0}, {"answered": 0.75, "distance": 1.0}, {"answered": 0.5, "distance": 3.0}]
    bundle = Bundle(BUNDLE.info.model_copy(update={"metrics": {"coverage": rows}}), ARRAYS, BUNDLE.sha256)
    scores = (0.0, 0.5, -1.0, 2.0, -3.0, 3.1)
    assert [bundle.certainty(score) for score in scores] == [0.0, 0.125, 0.25, 0.375, 0.5, 1.0]
    silent = Bundle(BUNDLE.info.model_copy(update={"metrics": {}}), ARRAYS, BUNDLE.sha256)
    assert silent.certainty(1.0) is None
