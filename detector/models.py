"""Which checkpoint scores which family right now. Owns loading, warming and swapping; judges no score.

The registry is asked, and a new champion read, verified and warmed, in a thread while the old one goes on; `refresh`,
called between batches, puts it in place. A checkpoint that can't be trusted or does not fit the declared family is
refused once, loudly. A registry that does not answer holds nobody up.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from queue import SimpleQueue

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from detector.blocks import WindowView
from detector.checkpoint import Bundle, verify_golden
from detector.engine import Detector, WindowBatch
from detector.manifest import EntityCalibration, Manifest
from detector.registry import ALIASES, Alias, Registry
from stream.contracts import WindowNotice
from stream.errors import CheckpointError, TelltaleError, TransientError, UsageError
from stream.metrics import Metrics
from stream.settings import FamilySettings
from stream.waiting import Stopping, never, refuse_to_wait
from stream.window_store import Window

_log = structlog.get_logger()
_LOOK_S = 0.2
# A thread that computes while the process ends may crash it; one that waits for the registry may be left.
_CLOSE_S = 5.0


class Model:
    """A checkpoint ready to score.

    columns: where each of its channels stands in a row of the window store. numeric: which of its channels are
    reconstructed, numeric_names their names.
    """

    def __init__(self, detector: Detector, columns: NDArray[np.intp]) -> None:
        """Index what the manifest lists."""
        self.detector = detector
        self.manifest = detector.manifest
        self.columns = columns
        self.numeric = [i for i, channel in enumerate(self.manifest.channels) if channel.kind == "numeric"]
        self.numeric_names = [self.manifest.channels[i].name for i in self.numeric]
        self._calibrations = {entity.name: entity for entity in self.manifest.entities}

    def takes(self, notice: WindowNotice) -> bool:
        """Say whether a window was cut as this model wants it; one announced under other settings may not be."""
        geometry = self.manifest.geometry
        wanted = (geometry.length, geometry.final_delay, self.manifest.interval_ms)
        return (notice.length, notice.final_delay, notice.interval_ms) == wanted

    def score(self, notices: Sequence[WindowNotice], windows: Sequence[Window]) -> list[WindowView]:
        """Score windows together; windows as the store gives them. Raises FloatingPointError on a NaN score."""
        values = np.stack([window.values for window in windows])[:, self.columns]
        batch = WindowBatch([n.entity for n in notices], np.array([n.end_slot for n in notices]), values)
        recent = max(notice.new_slots + notice.final_delay for notice in notices)
        scores = self.detector.score(batch, recent)
        stages = (values[:, self.numeric], scores.provisional, scores.final)
        return [WindowView(*one) for one in zip(*stages, scores.residual, scores.expected, scores.band, strict=True)]

    def calibration(self, entity: str) -> EntityCalibration:
        """Return an entity's calibration, that of unseen entities if training never saw it."""
        return self._calibrations.get(entity, self.manifest.unseen)


class Models:
    """The champions of the declared families, and their challengers, which take over without being loaded again."""

    def __init__(
        self,
        registry: Registry,
        families: list[FamilySettings],
        metrics: Metrics,
        *,
        device: str = "cpu",
        poll_s: float = 1.0,
        shadow: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load nothing yet. shadow: whether challengers are wanted."""
        self._registry = registry
        self._families = {family.name: family for family in families}
        self._metrics = metrics
        self._device = device
        self._poll_s = poll_s
        self._clock = clock
        self._aliases: tuple[Alias, ...] = ALIASES if shadow else ("champion",)
        self._polled = float("-inf")
        self._models: dict[tuple[str, Alias], Model] = {}
        self._refused: dict[tuple[str, Alias], str] = {}
        # Versions to put in place, errors to tell of, and None for an alias that names what is in place no longer.
        self._found: SimpleQueue[tuple[str, Alias, str, Model | TelltaleError | None]] = SimpleQueue()
        self._look: Future[None] | None = None

    def current(self, family: str) -> Model | None:
        """Return the model in use for a family, None while it has none."""
        return self._models.get((family, "champion"))

    def challenger(self, family: str) -> Model | None:
        """Return the model that is tried beside the one in use, None while there is none."""
        return self._models.get((family, "challenger"))

    def drop_challenger(self, family: str, reason: str) -> None:
        """Try this challenger no longer; the next one gets its chance."""
        dropped = self._models.pop((family, "challenger"))
        version = self._refused[family, "challenger"] = dropped.manifest.version
        self._metrics.challengers_dropped.labels(family).inc()
        _log.error("challenger dropped; the champion goes on", family=family, version=version, reason=reason)

    def refresh(self, *, wait: bool = False, stopping: Stopping = never) -> None:
        """Put what was loaded in place and look for new champions; with `wait`, do all of it now.

        Raises TransientError when `stopping()` while it waits.
        """
        if wait and self._look is not None:
            self._wait(self._look, stopping)
        self._take()
        if self._look is None and (wait or self._clock() - self._polled >= self._poll_s):
            self._polled = self._clock()
            self._look = _in_background(self._look_around)
        if wait and self._look is not None:
            self._wait(self._look, stopping)
            self._take()

    def close(self) -> None:
        """Let a load that goes on end, unless it hangs."""
        if self._look is not None:
            wait_for([self._look], _CLOSE_S)

    def _wait(self, look: "Future[None]", stopping: Stopping) -> None:
        while not wait_for([look], _LOOK_S).done:
            refuse_to_wait(stopping, "the model registry")

    def _take(self) -> None:
        done = self._look is not None and self._look.done()
        while not self._found.empty():
            self._finish(*self._found.get())
        if self._look is not None and done:
            self._look.result()  # raises what nobody expects
            self._look = None

    def _look_around(self) -> None:
        """Ask for each family's champion and challenger and load new ones; in a thread of its own."""
        for family in self._families:
            for alias in self._aliases:
                try:
                    version = self._registry.alias(family, alias)
                except (TransientError, CheckpointError) as error:
                    _log.warning(
                        "the registry can't be read; the model in use goes on", family=family, error=str(error)
                    )
                    continue
                self._compare(family, alias, version)

    def _compare(self, family: str, alias: Alias, version: str | None) -> None:
        present, refused = self._models.get((family, alias)), self._refused.get((family, alias))
        in_place = present and present.manifest.version
        if alias == "challenger" and in_place not in (None, version):
            self._found.put((family, alias, in_place or "", None))
        if version is not None and version not in {refused, in_place}:
            self._found.put((family, alias, version, self._load(family, version)))

    def _finish(self, family: str, alias: Alias, version: str, found: "Model | TelltaleError | None") -> None:
        if found is None:
            self._models.pop((family, alias), None)
            return
        before = self._models.get((family, alias))
        if isinstance(found, TransientError):
            _log.warning("checkpoint can't be read yet", family=family, version=version, error=str(found))
            return
        if not isinstance(found, Model):
            self._refused[family, alias] = version
            self._metrics.model_swaps.labels("refused").inc()
            _log.error("checkpoint refused; the old model goes on", family=family, version=version, reason=str(found))
            return
        self._models[family, alias] = found
        if alias == "challenger":
            _log.info("challenger in use beside the champion", family=family, version=version)
            return
        if before is not None:
            self._metrics.model_info.labels(family, before.manifest.version).set(0)
        self._metrics.model_info.labels(family, version).set(1)
        self._metrics.model_swaps.labels("done").inc()
        _log.info("model in use", family=family, version=version, before=before and before.manifest.version)

    def _load(self, family: str, version: str) -> "Model | TelltaleError":
        tried = self._models.get((family, "challenger"))
        if tried is not None and tried.manifest.version == version:
            return tried
        try:
            bundle = self._registry.read(family, version)
            columns = fit_columns(self._families[family], bundle.manifest)
            return Model(prove(bundle, self._device), columns)
        except (CheckpointError, UsageError, TransientError) as error:  # UsageError: what the alias names is no version
            return error


def _in_background(work: Callable[[], None]) -> "Future[None]":
    """Do work in a thread that a process does not wait for when it ends."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="load-model", daemon=True).start()
    return future


def prove(bundle: Bundle, device: str = "cpu") -> Detector:
    """Build the detector of a bundle and run its golden windows, which also warms it.

    Raises CheckpointError if the scores are not those the bundle was published with.
    """
    detector = Detector(bundle.manifest, bundle.weights, device)

    def score(
        entities: Sequence[str], end_slots: NDArray[np.int64], values: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            scores = detector.score(WindowBatch(entities, end_slots, values))
        except FloatingPointError as error:
            raise CheckpointError(f"golden windows can't be scored: {error}") from error
        return scores.provisional, scores.final

    verify_golden(bundle, score)
    return detector


def fit_columns(family: FamilySettings, manifest: Manifest) -> NDArray[np.intp]:
    """Return where the model's channels stand in the family's rows.

    Raises CheckpointError if the checkpoint was made for other channels or another geometry.
    """
    wanted, declared = [channel.name for channel in manifest.channels], list(family.channels)
    if sorted(wanted) != sorted(declared):
        odd = sorted(set(wanted) ^ set(declared))
        raise CheckpointError(f"checkpoint and family {family.name} differ in channels: {', '.join(odd[:5])}")
    ours, theirs = family.geometry, manifest.geometry
    if (ours.length, ours.final_delay, family.interval_ms) != (
        theirs.length,
        theirs.final_delay,
        manifest.interval_ms,
    ):
        raise CheckpointError(
            f"family {family.name} has length {ours.length}, final_delay {ours.final_delay}, interval_ms "
            f"{family.interval_ms}; the checkpoint wants {theirs.length}, {theirs.final_delay}, {manifest.interval_ms}"
        )
    return np.array([declared.index(name) for name in wanted])


def choose_device(wanted: str) -> str:
    """Return the torch device: what was asked for, or a GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
