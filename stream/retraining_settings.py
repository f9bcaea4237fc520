"""Settings of retraining: when a new model is made, of what, and what it must show before and after it takes over."""

from typing import Literal

from pydantic import Field

from stream.section import Section


class GateSettings(Section):
    """What a new model must show, beside the champion, on recent rows that it was not trained on.

    A ratio's or margin's bound follows the champion; the `most` and `least` bounds hold whatever the champion does, so
    where the champion fails on the new rows its successor must be better than it.
    """

    alarm_rate_ratio: float = Field(1.5, ge=1, description="share of normal rows in alarm, over the champion's")
    alarm_rate_free: float = Field(0.005, ge=0, le=1, description="such a share is good enough whatever the champion's")
    alarm_rate_most: float = Field(0.05, gt=0, le=1, description="such a share is refused whatever the champion's")
    error_ratio: float = Field(1.25, ge=1, description="mean error of reconstruction, over the champion's")
    error_most: float = Field(1.0, gt=0, description="such an error, in deviations of the rows, is refused")
    detection_margin: float = Field(0.1, ge=0, le=1, description="corrected event F0.5 on injected anomalies may lose")
    detection_least: float = Field(0.1, ge=0, le=1, description="such a corrected event F0.5 is refused below")
    entities: int = Field(16, ge=1, description="measured on so many entities at most, spread over the family")
    score_ratio_most: float = Field(3.0, gt=1, description="live scores over those of training, while on probation")


class RetrainingSettings(Section):
    """When a family's model is trained anew, and within which limits."""

    data: str = Field("", description="Parquet file or archive to train from; archive.url if empty")
    work_dir: str = Field("retraining", min_length=1, description="local folder where a run in progress is kept")
    approval: Literal["automatic", "manual"] = Field("automatic", description="manual: a person promotes")
    on_drift: bool = Field(True, description="train when drift is called")
    max_age_days: float = Field(30.0, ge=0, description="train when the champion is older; 0 is never")
    new_entities: float = Field(0.2, ge=0, description="train when so large a share is unknown to it; 0 is never")
    history_days: float = Field(30.0, gt=0, description="rows older than this are not used")
    minimum_rows: int = Field(
        2000, ge=1, description="rows an entity wants to be used, and time after a drift in slots"
    )
    most_rows: int = Field(5_000_000, ge=1, description="of all entities, the newest; an archive may hold more")
    held_out: float = Field(0.2, gt=0, lt=1, description="newest share of each entity's rows, kept for the gates")
    cool_down_minutes: float = Field(360.0, ge=0, description="between the end of one attempt and the next")
    back_off_minutes: float = Field(10.0, gt=0, description="after a failure; doubles with each one more, up to a day")
    preset: str = Field("small", min_length=1, description="preset of the training")
    minutes: float = Field(5.0, gt=0, description="time budget of the training loop")
    seed: int = Field(0, ge=0, description="seed of everything random")
    warm_start: bool = Field(True, description="begin with the champion's weights where they fit the new rows better")
    timeout_minutes: float = Field(120.0, gt=0, description="a training process that takes longer is ended")
    memory_mib: int = Field(8192, ge=256, description="a training process that takes more memory ends itself")
    threads: int = Field(1, ge=1, description="CPU threads of the training process")
    nice: int = Field(10, ge=0, le=19, description="how far the training process stands back for others")
    shadow_share: float = Field(0.25, ge=0, le=1, description="of live windows that the challenger scores too")
    shadow_slots: int = Field(5000, ge=1, description="slots that the challenger must have scored beside the champion")
    shadow_minutes: float = Field(
        1440.0, gt=0, description="a challenger that has not scored as many by then is rejected"
    )
    shadow_slowness: float = Field(
        4.0, gt=1, description="a challenger so many times slower than the champion is dropped"
    )
    probation_slots: int = Field(50_000, ge=1, description="slots that a new champion is watched for")
    probation_minutes: float = Field(1440.0, gt=0, description="and no longer than this")
    gates: GateSettings = GateSettings()
