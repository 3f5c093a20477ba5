from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.networks.spec import PRESETS, TkanSpec, load_spec


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_load_under_their_own_name(path: Path) -> None:
    assert load_spec(path.stem).name == path.stem


def test_a_misspelt_layer_is_named() -> None:
    spec = TkanSpec(name="x", layers=("head.layer1", "hed"))
    with pytest.raises(ConfigurationError, match="hed"):
        spec.expand_layers(["head", "head.layer1"])


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: x\nlayers: [head]\nstatistic: [mean]\n")
    with pytest.raises(ConfigurationError, match="statistic"):
        load_spec(str(tmp_path / "spec.yaml"))


def test_spec_id_is_of_the_recipe_not_of_its_name() -> None:
    one, other = TkanSpec(name="x", layers=("head",)), TkanSpec(name="y", layers=("head",))
    assert one.spec_id == other.spec_id
    assert one.spec_id != TkanSpec(name="x", layers=("head",), statistics=("sd",)).spec_id


def test_only_campplus_has_a_choice_of_spectrum() -> None:
    mel, linear = TkanSpec(name="x", layers=("head",)), TkanSpec(name="x", layers=("head",), spectrum="linear")
    assert mel.spec_id != linear.spec_id
    with pytest.raises(ValueError, match="wespeaker takes samples"):
        TkanSpec(name="x", backbone="wespeaker", layers=("resnet",), spectrum="linear")
