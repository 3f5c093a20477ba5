"""What cannot work on a Ray cluster is refused before Ray is asked. No test here starts Ray."""

from __future__ import annotations

import pytest
import ray

from pipeline.errors import ConfigurationError
from tune.cluster import connect, map_with_actors


@pytest.mark.parametrize(
    "address", ["myhost", "10.0.0.1", "myhost:", "myhost:99999", "nowhere://host", "nowhere://host:1"]
)
def test_what_is_no_address_is_a_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray is started"))
    with pytest.raises(
        ConfigurationError, match=f"'{address}' is no address of a Ray cluster: write HOST:PORT, or auto"
    ):
        connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigurationError, match="is no address"):
        connect(None)


def test_a_gpu_that_the_cluster_does_not_have_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "remote", lambda **_: pytest.fail("an actor is asked for"))
    with pytest.raises(ConfigurationError, match=r"--gpu 0\.5: the Ray cluster has 0 GPUs"):
        next(map_with_actors(object, (), [1], actors=1, num_gpus=0.5))
