"""Windows that have been scored, and series of them, to be judged."""

import msgspec
import numpy as np

from detector.blocks import WindowView
from detector.decision import decide, initial_moments
from detector.manifest import Moments
from stream.contracts import SourceRange, WindowNotice
from tests.bundles import LENGTH, make_manifest

MANIFEST = make_manifest(version="v1")
NUMERIC = ["a", "b"]
RULE = MANIFEST.decision
END = 1_767_225_599
NEW = initial_moments(MANIFEST, MANIFEST.entities[0])


def notice(**changes):
    fields = {
        "entity": "e-1",
        "family": "rover",
        "interval_ms": 1000,
        "end_slot": END,
        "length": LENGTH,
        "new_slots": 4,
        "final_delay": 4,
        "rows": LENGTH,
        "ring": 0,
        "first_slot": 0,
        "source": SourceRange("telemetry", 0, 0, 9),
        "trigger_ms": 0,
    }
    return WindowNotice(**{**fields, **changes})


def view(provisional, final=None, seed=0):
    """Return a window with these scores; slots without a provisional score have no row and no score at all."""
    provisional = np.array(provisional, np.float32)
    final = provisional if final is None else np.where(np.isnan(provisional), np.nan, np.array(final, np.float32))
    shape = (len(NUMERIC), LENGTH)
    residual, expected, values = np.random.default_rng(seed).uniform(0, 2, (3, *shape)).astype(np.float32)
    values[:, np.isnan(provisional)] = np.nan
    return WindowView(values, provisional, final, residual, expected, np.full(shape, 0.5, np.float32))


KNOWN = initial_moments(MANIFEST, MANIFEST.entities[0], followed=RULE.learning)


def known(provisional, final):
    """Return moments of an entity that has been followed for long enough to be judged."""
    return msgspec.structs.replace(KNOWN, provisional=Moments(*provisional), final=Moments(*final))


def decided(one, scores, moments=KNOWN, rule=RULE):
    manifest = msgspec.structs.replace(MANIFEST, decision=rule)
    return decide(manifest, NUMERIC, one, scores, moments)


class Walk:
    """A series of scores, told in hops: what was said of each slot, and after which hops a stage had adapted."""

    def __init__(self, scores, rule, *, hop=4, moments=NEW):
        self.preds = {"provisional": [], "final": []}
        self.learning, self.adapted = [], []
        scores = np.concatenate([np.full(LENGTH, np.nan), scores])
        for end in range(LENGTH + hop, len(scores) + 1, hop):
            one = notice(end_slot=end - 1, new_slots=hop, final_delay=0, first_slot=LENGTH)
            decision = decided(one, view(scores[end - LENGTH : end]), moments, rule)
            moments = decision.moments
            for block in decision.blocks:
                self.preds[block.stage] += block.preds
            self.learning += [decision.blocks[0].learning] * hop
            self.adapted += [(hit.stage, end - LENGTH) for hit in decision.hits if hit.adapted]
        self.moments = moments

    @property
    def final(self):
        return np.array(self.preds["final"])


def quiet(slots, level=1.0, seed=0):
    """Draw scores about a level, a tenth of it apart."""
    return level * np.random.default_rng(seed).normal(1, 0.1, slots)
