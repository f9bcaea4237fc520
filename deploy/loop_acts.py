"""The loop demo's acts in their order, from the usual regime to a rollback, and the figures of a run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from deploy.demo_view import DemoView, Step
from deploy.loop_bad import offer_bad
from deploy.loop_report import AlarmRates, LoopReport, show_gates
from deploy.loop_source import INTERVAL_MS, RegimeSource
from deploy.loop_watch import LoopWatch
from deploy.model_decisions import promote
from detector.registry import Registry
from stream.contracts import DriftEvent, ModelEvent, ModelEventKind
from stream.grid import Geometry
from stream.settings import Settings

# What is promised; a run that misses it says so.
_MOST_RATIO, _MOST_SWAP_S = 1.5, 2.0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large a run is. slots: of each entity. minutes: of each training. The acts end by `most_s` whatever came."""

    entities: int = 12
    workers: int = 3
    rows_per_s: float = 1000.0
    geometry: Geometry = Geometry(length=256, hop=32, final_delay=32, slack=2048)
    training_rows: int = 6000
    minutes: float = 0.75
    slots_before: int = 3000
    rows_to_train: int = 1800
    slots_after: int = 2500
    faults: int = 12
    most_s: float = 465.0
    patience: float = 1.0

    @classmethod
    def slowed(cls, by: float) -> "Size":
        """Return a run that gives a busy machine so many times as long for everything."""
        usual = cls()
        return cls(rows_per_s=usual.rows_per_s / by, minutes=usual.minutes * by, most_s=usual.most_s * by, patience=by)


class Acts:
    """The acts of a run in their order; one that can't be without an earlier one is left out."""

    def __init__(
        self, settings: Settings, source: RegimeSource, watch: LoopWatch, size: Size, view: DemoView, end_s: float
    ) -> None:
        """Begin nothing yet. end_s: the monotonic time by which the last act is over, whatever came."""
        self._settings, self._source, self._watch, self._size, self._view = settings, source, watch, size, view
        self._end_s = end_s
        self._changed_s = self._drifted_s = 0.0
        self._new: str | None = None
        self._first_new = self._last_new = 0  # slots judged by the new model before anybody attacks it
        self._bad: list[str] = []
        self._missed: list[str] = []

    def play(self) -> None:
        """Go through the acts."""
        self._change()
        self._retrain()
        if self._new is not None and self._promote():
            self._plant()
            self._attack()

    def _change(self) -> None:
        watch, regime = self._watch, self._source.regime_slot
        with self._act("1 the usual regime", lambda: watch.tally.newest_slot >= regime, 120) as step:
            self._changed_s = time.monotonic()
            rate = watch.rate(self._source.first_slot, regime - 1)
            step.done(f"{self._size.slots_before:,} slots of {self._size.entities} entities, {_percent(rate)} in alarm")
        with self._act("2 the regime changes: drift", lambda: watch.drift is not None, 120) as step:
            self._drifted_s = time.monotonic()
            if watch.drift is not None:
                step.done(_drifted(watch.drift, watch.delay_blocks() or 0.0))

    def _retrain(self) -> None:
        watch = self._watch
        ended = lambda: any(e.kind in ("announced", "failed") for e in watch.history)  # noqa: E731
        with self._act("3 retraining", ended, 240) as step:
            told = next((e for e in watch.history if e.kind in ("announced", "failed")), None)
            if told is not None:
                self._new = told.version
                step.done(f"{told.version or told.detail}, by reason of {told.reason}")
        show_gates(self._view.console, watch.gates(self._new))

    def _promote(self) -> bool:
        """See the new model through shadow, swap and probation; say whether it is the champion."""
        watch, new = self._watch, self._new

        def decided() -> bool:
            return watch.champion() == new or watch.decided("rejected", new) is not None

        with self._act("4 shadow and promotion", decided, 90) as step:
            refused = watch.decided("rejected", new)
            step.done(f"refused: {refused.detail}" if refused else f"{new} is champion")
        if watch.champion() != new:
            self._missed.append(f"{new} was not promoted")
            return False
        with self._act("5 the swap", lambda: watch.swap_s(new) is not None, 30) as step:
            step.done(f"{self._size.workers} workers within {watch.swap_s(new)} s of the decision")
        with self._act("6 probation", lambda: watch.last("kept", "rolled_back"), 75) as step:
            step.done(watch.history[-1].detail)
        return True

    def _plant(self) -> None:
        """Plant faults in the new regime and wait until they are over."""
        watch = self._watch
        self._first_new = watch.tally.first_slot_of(self._new or "") or self._source.regime_slot
        planned = self._source.plant(self._size.faults, self._size.slots_after)
        last = max(fault.last_ms for fault in planned) // INTERVAL_MS + 2 * self._source.geometry.length
        with self._act("7 faults in the new regime", lambda: watch.tally.newest_slot >= last, 90) as step:
            self._last_new = min(last, watch.tally.newest_slot)
            found, false = watch.faults_found(self._first_new, self._last_new)
            rate = watch.rate(self._first_new, self._last_new)
            step.done(f"{found} of {len(planned)} found, {false} alerts at none, {_percent(rate)} in alarm")

    def _attack(self) -> None:
        """Offer a network that is broken, twice: as a challenger, and as a champion by a person's order."""
        champion = self._watch.champion()
        with self._act("8 a bad challenger", lambda: self._fate(0, "rejected") is not None, 60, self._offer) as step:
            if refused := self._fate(0, "rejected"):
                step.done(f"{refused.version} refused: {refused.detail}")
        with self._act("9 a bad champion", lambda: self._fate(1, "rolled_back") is not None, 60, self._force) as step:
            if taken := self._fate(1, "rolled_back"):
                step.done(f"{taken.version} rolled back: {taken.detail}")
        if self._watch.champion() != champion:
            self._missed.append(f"the champion at the end is {self._watch.champion()}, it was {champion}")

    def _offer(self) -> None:
        """Publish a broken version and say that its trial went well; the services find out."""
        version = offer_bad(self._settings, Registry(self._settings.registry), self._source.family.name, len(self._bad))
        self._bad.append(version)

    def _force(self) -> None:
        """Offer another one, and promote it by hand before shadow has said a word."""
        self._offer()
        self._watch.wait(lambda: self._watch.decided("shadowing", self._bad[-1]) is not None, 20 * self._size.patience)
        model = f"{self._source.family.name}@{self._bad[-1]}"
        promote(self._settings, Registry(self._settings.registry), model, lambda _: None)

    def _fate(self, number: int, kind: ModelEventKind) -> ModelEvent | None:
        return self._watch.decided(kind, self._bad[number]) if len(self._bad) > number else None

    @contextmanager
    def _act(
        self, name: str, done: Callable[[], bool], most_s: float, begin: Callable[[], None] = lambda: None
    ) -> Iterator[Step]:
        """Begin an act, wait for its end and show it; note what is not reached in time."""
        with self._view.step(name) as step:
            begin()
            within_s = min(most_s * self._size.patience, max(self._end_s - time.monotonic(), 0.0))
            reached = self._watch.wait(done, within_s)
            yield step
            if not reached:
                self._missed.append(name)
                step.missed(f"not reached in {within_s:.0f} s")

    def report(self, seed: int, seconds: float) -> LoopReport:
        """Put the figures together."""
        watch, rates = self._watch, self._rates()
        ratio = rates.after / rates.before if rates.after is not None and rates.before else None
        refused, rolled_back = self._fate(0, "rejected"), self._fate(1, "rolled_back")
        found, false = watch.faults_found(self._first_new, self._last_new)
        return LoopReport(
            drift_delay_blocks=watch.delay_blocks(),
            gates=watch.gates(self._new),
            swap_s=watch.swap_s(self._new),
            slots_unscored=watch.unscored(),
            slots_repeated=watch.tally.repeated,
            alarm_rate=rates,
            faults_after=len(self._source.faults()),
            faults_after_found=found,
            bad_challenger_refused=refused is not None,
            bad_champion_rolled_back=rolled_back is not None,
            alarm_rate_ratio=ratio,
            workers=self._size.workers,
            entities=self._size.entities,
            rows=watch.rows,
            rows_per_s=self._size.rows_per_s,
            block_slots=watch.drift.block_slots if watch.drift else None,
            drift_delay_s=round(self._drifted_s - self._changed_s, 1) if watch.drift else None,
            training_s=watch.training_s(self._new),
            false_alarms_after=false,
            refused_because=refused.detail if refused else "",
            rolled_back_because=rolled_back.detail if rolled_back else "",
            decisions=watch.history,
            not_reached=[*self._missed, *_beyond(rates, watch.swap_s(self._new))],
            seed=seed,
            seconds=round(seconds, 1),
        )

    def _rates(self) -> AlarmRates:
        watch, regime = self._watch, self._source.regime_slot
        new = self._first_new or watch.tally.newest_slot + 1
        return AlarmRates(
            before=watch.rate(self._source.first_slot, regime - 1),
            during=watch.rate(regime, new - 1),
            after=watch.rate(new, self._last_new) if self._last_new else None,
        )


def _beyond(rates: AlarmRates, swap_s: float | None) -> Iterator[str]:
    """Yield which figures are not what they should be."""
    if rates.before is not None and rates.after is not None and rates.after > _MOST_RATIO * rates.before:
        yield f"the alarm rate after is {rates.after:.2%}, wanted {_MOST_RATIO} times {rates.before:.2%} at most"
    if swap_s is not None and swap_s > _MOST_SWAP_S:
        yield f"the swap took {swap_s} s, wanted {_MOST_SWAP_S} at most"


def _percent(rate: float | None) -> str:
    return "nothing" if rate is None else f"{rate:.2%}"


def _drifted(event: DriftEvent, blocks: float) -> str:
    channels = ", ".join(channel.channel or "score" for channel in event.channels[:4])
    return (
        f"{event.moved} of {event.watched} entities moved, called {blocks:.1f} blocks of {event.block_slots} slots "
        f"after the change; {channels}"
    )
