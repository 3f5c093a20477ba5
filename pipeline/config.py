"""The configuration of the pipeline: what `configs/detector.yaml` may say, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = ROOT / "configs" / "detector.yaml"

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A section of configuration: a key it does not know is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Strict):
    """What an upload may be. Every cap is applied while decoding, never read from a header."""

    max_upload_mib: float = Field(25, gt=0)
    max_duration_seconds: float = Field(600, gt=0)
    max_files: int = Field(10, ge=1)
    max_channels: int = Field(8, ge=1)
    min_sample_rate: int = Field(4_000, ge=1)
    max_sample_rate: int = Field(384_000, ge=1)
    max_decode_seconds: float = Field(60, gt=0)

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mib * 2**20)


class VoiceActivity(Strict):
    """Where speech begins and ends. `onset` and `offset` are the hysteresis thresholds on speech probability."""

    model: Literal["segmentation-3.0", "silero"] = "segmentation-3.0"
    onset: float = Field(0.5, gt=0, lt=1)
    offset: float = Field(0.5, gt=0, lt=1)
    min_speech_seconds: float = Field(0.1, ge=0)
    min_silence_seconds: float = Field(0.1, ge=0)


class Diarization(Strict):
    """Who speaks when.

    `embedded` needs no token: segmentation-3.0 and CAM++ under pyannote's agglomerative clustering, to which
    `clustering_threshold`, `min_cluster_size` and `segmentation_step` belong. The other two are pyannote's own
    gated pipelines, run as published.
    """

    pipeline: Literal[
        "embedded",
        "pyannote/speaker-diarization-3.1",
        "pyannote/speaker-diarization-community-1",
    ] = "embedded"
    clustering_threshold: float = Field(0.7, gt=0, lt=2)
    min_cluster_size: int = Field(12, ge=1)
    segmentation_step: float = Field(0.25, gt=0, le=1)


class Windows(Strict):
    """How speech is cut for scoring: `seconds` of one speaker's speech a window, one every `hop_seconds`."""

    seconds: float = Field(4.0, gt=0)
    hop_seconds: float = Field(2.0, gt=0)
    step_seconds: float = Field(0.5, gt=0)


class Decision(Strict):
    """What evidence a verdict needs: with less speech than `min_speech_seconds` the answer is Inconclusive, and below
    `min_bandwidth_hz` a recording is judged as a telephone's. `prior` is the share of fakes expected."""

    min_speech_seconds: float = Field(1.0, ge=0)
    min_bandwidth_hz: float = Field(4_200, ge=0)
    prior: float = Field(0.5, gt=0, lt=1)


class DetectorConfig(Strict):
    """All of `configs/detector.yaml`. Relative paths are relative to the repository root.

    `threads` is how many a stage computes with on a CPU, `decoders` how many processes a Decoder decodes uploads in.
    """

    bundle: Path = Path("pipeline/bundles/default")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    decoders: int = Field(2, ge=1)
    limits: Limits = Limits()
    voice_activity: VoiceActivity = VoiceActivity()
    diarization: Diarization = Diarization()
    windows: Windows = Windows()
    decision: Decision = Decision()

    @classmethod
    def load(cls, path: Path | None = None) -> DetectorConfig:
        """Read `path`, or `configs/detector.yaml` where none is given.

        Raises ConfigurationError that names the file and the key.
        """
        return parse(cls, path or DEFAULT_CONFIG)

    @property
    def bundle_path(self) -> Path:
        return ROOT / self.bundle


def parse(model: type[Model], path: Path) -> Model:
    """Read the YAML file `path` as a `model`. Raises ConfigurationError that names the file and the key."""
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return model.model_validate({} if values is None else values)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no configuration file {path.name}: give the path of one") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path.name} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {describe_misfits(error, model=model)}") from error


def describe_misfits(error: ValidationError, where: str = "", model: type[BaseModel] | None = None) -> str:
    """Each key that pydantic refused, as `where` and the key's path, and why. Of a `model` that is named, the key that
    one it does not know is likely meant to be."""
    found = []
    for problem in error.errors():
        *section, key = problem["loc"] or ("",)
        why = problem["msg"]
        if problem["type"] == "extra_forbidden":
            likely = get_close_matches(str(key), _keys(model, section), n=1)
            why = "there is no such key" + (f": did you mean {likely[0]}?" if likely else "")
        found.append(f"{where + '.'.join(str(part) for part in problem['loc']) or 'the file'}: {why}")
    return "; ".join(found)


def _keys(annotation: Any, section: Sequence[int | str]) -> set[str]:
    """The keys that a section may hold: `section` is its path in the annotation of a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not section:
            return set(annotation.model_fields)
        field = annotation.model_fields.get(str(section[0]))
        if field is not None:
            return _keys(field.annotation, section[1:])
        # Where one of several models was chosen by its kind, the path names the kind, too.
        return _keys(annotation, section[1:])
    return set().union(*(_keys(part, section) for part in get_args(annotation)))
