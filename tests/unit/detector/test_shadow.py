"""What a challenger may do to the champion's scores, which is nothing."""

from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.engine import Detector
from detector.models import Model, fit_columns
from detector.shadow import Shadow, is_drawn
from stream.contracts import ScoreBlock, SourceRange, WindowNotice
from stream.metrics import Metrics
from stream.settings import RetrainingSettings
from tests.builders import untrained
from tests.unit.detector import test_worker as live
from tests.unit.detector.test_worker import Outputs, by_slot, score

announced = live.announced

_manifest, _weights = untrained(geometry=live.GEOMETRY, scoring=live.MANIFEST.scoring, seed=1)
_manifest = msgspec.structs.replace(_manifest, version="2", decision=live.DECISION)
OTHER = Model(Detector(_manifest, _weights), fit_columns(live.FAMILY, _manifest))


class Broken:
    """A challenger that fails on every window."""

    manifest, numeric_names = _manifest, OTHER.numeric_names

    def __init__(self, error):
        self.error = error

    def takes(self, notice):
        return True

    def score(self, notices, windows):
        raise self.error


class Both(live.Champions):
    """A champion and a challenger, which is dropped when it is told to be."""

    def __init__(self, challenger):
        super().__init__()
        self.tried, self.reasons = challenger, []

    def challenger(self, family):
        return self.tried if family == "test" else None

    def drop_challenger(self, family, reason):
        self.tried = None
        self.reasons.append(reason)


def run(announced, models, *, share=1.0, batch=7):
    outputs = Outputs()
    settings = live.SETTINGS.model_copy(update={"retraining": RetrainingSettings(shadow_share=share)})
    worker = live.Worker(settings, announced.store, models, outputs.states, Metrics())
    worker.restore(0, 0, 0)
    for at in range(0, len(announced.records), batch):
        score(worker, outputs, announced.records[at : at + batch])
    return outputs


def without_shadow(outputs):
    return [message for message in outputs.messages if message.topic != "shadow-scores"]


@pytest.fixture(scope="module")
def alone(announced):
    return run(announced, live.Champions())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "challenger",
    [OTHER, Broken(FloatingPointError("NaN")), Broken(RuntimeError("out of memory"))],
    ids=["good", "not finite", "out of memory"],
)
def test_what_the_champion_publishes_is_the_same_to_the_bit(announced, alone, challenger, share):
    """Scores, alerts and decision states alike: the challenger's messages are the only difference."""
    assert without_shadow(run(announced, Both(challenger), share=share)) == alone.messages


def test_a_challenger_scores_what_it_would_score_as_champion(announced):
    """But for the words of who made them."""
    shadow = run(announced, Both(OTHER)).of("shadow-scores", ScoreBlock)
    champion = run(announced, live.Champions(OTHER)).blocks
    ours = [block for block in champion if block.entity != "x1"]
    assert sorted(shadow, key=str) == sorted(ours, key=str)
    assert {block.model.version for block in shadow} == {"2"}


def test_a_share_is_a_part_of_the_whole(announced):
    def tried(share):
        found = SimpleNamespace(blocks=run(announced, Both(OTHER), share=share).of("shadow-scores", ScoreBlock))
        return by_slot(found).keys()

    assert tried(0.0) == set()
    assert tried(0.2) < tried(0.5) < tried(1.0)


@pytest.mark.parametrize(
    "error", [FloatingPointError("a score is NaN"), RuntimeError("no memory"), ValueError("shape")]
)
def test_a_challenger_that_breaks_is_dropped_once(announced, error):
    models = Both(Broken(error))
    assert run(announced, models).of("shadow-scores", ScoreBlock) == []
    assert models.reasons == [f"{type(error).__name__}: {error}"]


class Seconds:
    """A clock that goes on by so much at every look."""

    def __init__(self, each):
        self.now, self.each = 0.0, each

    def __call__(self):
        self.now += self.each
        return self.now


@pytest.mark.parametrize(("seconds", "dropped"), [(0.15, False), (0.25, True)])
def test_a_challenger_much_slower_than_the_champion_is_dropped(announced, seconds, dropped):
    models = Both(OTHER)
    shadow = Shadow(models, 1.0, 2.0, Metrics(), Seconds(seconds))
    notices = [msgspec.json.decode(record.value, type=WindowNotice) for record in announced.records]
    notice = next(one for one in notices if one.entity == "P-1")
    worker = live.start(announced, Outputs())
    window = worker._read([notice])
    for _ in range(60):
        shadow.score("test", [notice], window, 0.1, lambda _: 0)
    assert bool(models.reasons) == dropped


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**9), st.text(min_size=1, max_size=9))
def test_a_larger_share_holds_the_smaller_one(one, other, end_slot, entity):
    small, large = sorted([one, other])
    source, sizes = SourceRange("t", 0, 0, 0), dict.fromkeys(("length", "new_slots", "rows"), 1)
    zeros = dict.fromkeys(("final_delay", "ring", "first_slot", "trigger_ms"), 0)
    notice = WindowNotice(entity=entity, family="f", interval_ms=1, end_slot=end_slot, source=source, **sizes, **zeros)
    assert is_drawn(notice, small) <= is_drawn(notice, large)
    assert is_drawn(notice, 1.0)
    assert not is_drawn(notice, 0.0)
