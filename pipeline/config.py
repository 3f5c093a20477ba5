"""The configuration of the pipeline: all keys that `configs/detector.yaml` may hold."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = ROOT / "configs" / "detector.yaml"

MAX_MISFITS = 100
"""Up to this number of wrong keys and values are named. To name the million that a request may have takes 10 s."""

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A section of the configuration. An unknown key is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Strict):
    """The limits for an upload. Each is checked against the decoded audio, never against a header.

    If channels are judged one by one, their sound together may last `max_split_durations` times `max_duration_seconds`.
    """

    max_upload_mib: float = Field(25, gt=0)
    max_duration_seconds: float = Field(600, gt=0)
    max_files: int = Field(10, ge=1)
    max_channels: int = Field(8, ge=1)
    max_split_durations: float = Field(8, ge=1)
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

    @model_validator(mode="after")
    def _offset_is_not_above(self) -> Self:
        if self.offset > self.onset:
            raise ValueError("offset must not be above onset")
        return self


class Diarization(Strict):
    """Who speaks when.

    `embedded` needs no token: it runs segmentation-3.0 and CAM++ with pyannote's agglomerative clustering.
    `clustering_threshold`, `min_cluster_size` and `segmentation_step` apply to it alone. The other two are pyannote's
    own gated pipelines, run as published.
    """

    pipeline: Literal[
        "embedded",
        "pyannote/speaker-diarization-3.1",
        "pyannote/speaker-diarization-community-1",
    ] = "embedded"
    clustering_threshold: float = Field(0.7, gt=0, lt=2)
    min_cluster_size: int = Field(8, ge=1)
    segmentation_step: float = Field(0.25, gt=0, le=1)


class Windows(Strict):
    """How speech is cut for scoring: one window every `hop_seconds`, each with `seconds` of one speaker's speech."""

    seconds: float = Field(4.0, gt=0)
    hop_seconds: float = Field(2.0, gt=0)
    step_seconds: float = Field(0.5, gt=0)

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> Self:
        if self.hop_seconds > self.seconds:
            raise ValueError("hop_seconds must not be above seconds, or speech between the windows would get no score")
        return self


class Decision(Strict):
    """The evidence that a verdict needs.

    With less speech than `min_speech_seconds` the answer is Inconclusive. A recording whose level is more than
    `max_drop_db` lower above a telephone's band than inside it is judged as a telephone call. Below `opus_kbits` Opus
    makes humans sound like machines: `opus_variance` * ln(`opus_kbits` / bit rate) is then added to the variance of the
    score. `prior` is the expected share of fakes, 0 to 1. It turns scores into probabilities, those of the
    thresholds too, so it changes no result. The score 0 has the probability `prior`.
    """

    min_speech_seconds: float = Field(1.0, ge=0)
    max_drop_db: float = Field(35, ge=0)
    opus_kbits: float = Field(56, gt=0)
    opus_variance: float = Field(4, ge=0)
    prior: float = Field(0.5, gt=0, lt=1)


class DetectorConfig(Strict):
    """All of `configs/detector.yaml`. Relative paths are relative to the repository root.

    `threads`: the CPU threads that a stage computes with. `decoders`: the processes that a Decoder decodes uploads in.
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
        """Read `path`, or `configs/detector.yaml` if no path is given.

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
    except OSError as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error.strerror}. Give the path of a file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{path.name}: {describe_misfits(error, model=model)}") from error


def describe_misfits(
    error: ValidationError, where: str = "", model: type[BaseModel] | None = None, whole: str = "the file"
) -> str:
    """Each key that pydantic refused, and why; only their number if they are many. A key is written as `where` followed
    by its path, and what holds all keys as `whole`.

    If `model` is given, the text also suggests a known key for each unknown one.
    """
    if error.error_count() > MAX_MISFITS:
        return f"{error.error_count()} keys or values are wrong, too many to name"
    found = []
    for problem in error.errors():
        *section, key = problem["loc"] or ("",)
        why = problem["msg"]
        if problem["type"] == "extra_forbidden":
            likely = get_close_matches(str(key), _keys(model, section), n=1)
            why = "there is no such key" + (f": did you mean {likely[0]}?" if likely else "")
        found.append(f"{where + '.'.join(str(part) for part in problem['loc']) or whole}: {why}")
    return "; ".join(found)


def _keys(annotation: Any, section: Sequence[int | str]) -> set[str]:
    """The keys that a section may hold. `section` is the section's path within the type `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not section:
            return set(annotation.model_fields)
        field = annotation.model_fields.get(str(section[0]))
        if field is not None:
            return _keys(field.annotation, section[1:])
        # If a section may be one of several models, the path also names the kind of the model.
        return _keys(annotation, section[1:])
    return set().union(*(_keys(part, section) for part in get_args(annotation)))
