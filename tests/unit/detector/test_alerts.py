from itertools import groupby

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.alerts import Episode, advance, severity_of
from detector.decision import Hit, initial_moments
from detector.worker import EntityState
from stream.contracts import Alert, ChannelEvidence, SourceRange, WindowNotice, episode_id
from tests.bundles import LENGTH, make_manifest

HOP, FINAL_DELAY, RESOLVE_AFTER = 4, 4, 4
BASE = 1_767_225_600 // HOP * HOP
MANIFEST = make_manifest(version="v1")
MANIFEST = msgspec.structs.replace(
    MANIFEST, decision=msgspec.structs.replace(MANIFEST.decision, resolve_after=RESOLVE_AFTER)
)
EVIDENCE = [ChannelEvidence(channel="a", share=0.9, observed=7.0, expected=1.0, low=0.0, high=2.0)]


def notice(number):
    end = BASE + (number + 1) * HOP - 1
    return WindowNotice(
        entity="e-1",
        family="rover",
        interval_ms=1000,
        end_slot=end,
        length=LENGTH,
        new_slots=HOP,
        final_delay=FINAL_DELAY,
        rows=LENGTH,
        ring=BASE,
        first_slot=BASE,
        source=SourceRange("telemetry", 0, number, number + 9),
        trigger_ms=0,
    )


def hit(stage, number, z=4.0, at=0):
    """Return a hit on one of the slots that window `number` is the first to score in this stage."""
    slot = BASE + number * HOP + at - (FINAL_DELAY if stage == "final" else 0)
    return Hit(stage, slot, slot, slot, score=z, threshold=3.0, p_value=0.001, z=z, channels=EVIDENCE)


def hits_of(token, number):
    """Read one window of a time line: P, F: a hit; e, c: it is an error, critical; anything else: none."""
    z = 30.0 if "c" in token else 10.0 if "e" in token else 4.0
    stages = [("P", "provisional"), ("F", "final")]
    return [hit(stage, number, z) for letter, stage in stages if letter in token]


def run(windows, *, between=lambda state: state, deployment="telltale"):
    """Return the messages of each window and the episode that is open at the end."""
    episode, told = None, []
    for number, hits in enumerate(windows):
        step = advance(MANIFEST, deployment, notice(number), hits, episode, 0.25)
        told.append(step.alerts)
        episode = between(step.episode)
    return told, episode


def drawn(line):
    windows = [hits_of(token, number) for number, token in enumerate(line.split())]
    return run(windows)


# Final scores lag by one window here, and an episode ends four normal final slots, one window, after its last slot.
TIME_LINES = {
    "nothing": (". . .", [[], [], []]),
    "a provisional score alone": ("P . . .", [["firing"], [], ["resolved"], []]),
    "confirmed by the final score": ("P F . .", [["firing"], ["updated"], ["resolved"], []]),
    "seen in the final score only": (". F . .", [[], ["firing"], ["resolved"], []]),
    "it lasts": ("P PF PF F . .", [["firing"], ["updated"], [], [], ["resolved"], []]),
    "both at once": ("PF . .", [["firing"], [], ["resolved"]]),
    "it gets worse": ("P Pe Pc . . .", [["firing"], ["updated"], ["updated"], [], ["resolved"], []]),
    "it gets better, which is no news": ("Pc Pe P . . .", [["firing"], [], [], [], ["resolved"], []]),
    "worse and confirmed at once": ("P PeF . . .", [["firing"], ["updated"], [], ["resolved"], []]),
    "again before it is over": ("P . P . . .", [["firing"], [], [], [], ["resolved"], []]),
    "two apart": ("P . . . P . .", [["firing"], [], ["resolved"], [], ["firing"], [], ["resolved"]]),
    "open at the end": ("P PF", [["firing"], ["updated"]]),
}


@pytest.mark.parametrize("name", TIME_LINES)
def test_time_lines(name):
    line, states = TIME_LINES[name]
    told, _ = drawn(line)
    assert [[alert.state for alert in alerts] for alerts in told] == states


def test_an_episode_may_begin_and_end_in_one_window():
    """The final scores of a long hop reach far behind its anomalous slot."""
    early = [hit("final", 0)._replace(first_slot=BASE - 20, last_slot=BASE - 20)]
    told, episode = run([early])
    assert [alert.state for alert in told[0]] == ["firing", "resolved"]
    assert [alert.revision for alert in told[0]] == [0, 1]
    assert episode is None


TOKENS = st.lists(st.sampled_from([".", ".", ".", "P", "F", "PF", "Pe", "PeF", "Fc", "PcF"]), max_size=30)


@st.composite
def windows(draw):
    return [hits_of(token, number) for number, token in enumerate(draw(TOKENS))]


@given(windows())
def test_every_episode_is_one_firing_some_updates_and_one_resolved_message(line):
    told, episode = run([*line, [], [], []])
    assert episode is None
    alerts = [alert for window in told for alert in window]
    episodes = [list(group) for _, group in groupby(alerts, lambda alert: alert.episode_id)]
    assert len({group[0].episode_id for group in episodes}) == len(episodes)
    for group in episodes:
        assert [alert.state for alert in group] == ["firing", *["updated"] * (len(group) - 2), "resolved"]
        assert [alert.revision for alert in group] == list(range(len(group)))
    assert len({alert.id for alert in alerts}) == len(alerts)


@given(windows())
def test_every_hit_lies_in_an_episode_and_every_episode_has_a_hit(line):
    told, _ = run([*line, [], [], []])
    hits = [hit for window in line for hit in window]
    spans = [(a.starts_at_ms, a.ends_at_ms) for window in told for a in window if a.state == "resolved"]
    assert bool(hits) == bool(spans)
    for first, last in spans:
        assert first <= last
        assert {first, last} <= {hit.first_slot * 1000 for hit in hits}
    latest = max((hit.last_slot * 1000 for hit in hits), default=None)
    assert latest == max((last for _, last in spans), default=None)


def test_a_clock_that_goes_back_ends_the_episode_and_what_follows_is_a_new_one():
    step = advance(MANIFEST, "telltale", notice(1000), [hit("provisional", 1000)], None, 0.0)
    quiet = advance(MANIFEST, "telltale", notice(3), [], step.episode, 0.0)
    assert [alert.state for alert in quiet.alerts] == ["resolved"]
    assert quiet.episode is None
    loud = advance(MANIFEST, "telltale", notice(3), [hit("provisional", 3)], step.episode, 0.0)
    assert [alert.state for alert in loud.alerts] == ["resolved", "firing"]
    assert loud.alerts[0].episode_id == step.alerts[0].episode_id != loud.alerts[1].episode_id


@given(windows())
def test_an_update_has_news_and_news_are_told(line):
    """Severity only rises within an episode, and what rests on final scores stays so."""
    told, _ = run(line)
    alerts = [alert for window in told for alert in window]
    for _, group in groupby(alerts, lambda alert: alert.episode_id):
        messages = list(group)
        ranks = [["warning", "error", "critical"].index(alert.severity) for alert in messages]
        certainty = [alert.rests_on == "final" for alert in messages]
        assert ranks == sorted(ranks)
        assert certainty == sorted(certainty)
        updates = [(r, c) for r, c, a in zip(ranks, certainty, messages, strict=True) if a.state != "resolved"]
        assert len(set(updates)) == len(updates)


@given(windows())
def test_a_replay_tells_the_same_with_the_same_identities(line):
    assert run(line) == run(line)


@given(windows())
def test_an_episode_survives_being_stored_between_any_two_windows(line):
    moments = initial_moments(MANIFEST, MANIFEST.entities[0])
    line = [[one._replace(adapted=number % 3 == 0) for one in hits] for number, hits in enumerate(line)]

    def through_the_topic(episode):
        state = EntityState(moments, episode)
        restored = msgspec.json.decode(msgspec.json.encode(state), type=EntityState)
        assert restored == state
        return restored.episode

    assert run(line, between=through_the_topic) == run(line)


@given(windows())
def test_an_alert_survives_the_wire(line):
    for window in run(line)[0]:
        for alert in window:
            assert msgspec.json.decode(msgspec.json.encode(alert), type=Alert) == alert


def test_an_episode_is_named_by_installation_entity_and_first_slot():
    told, _ = drawn(". P . .")
    assert told[1][0].episode_id == episode_id("telltale", "e-1", BASE + HOP)
    other, _ = run([hits_of("P", 0)], deployment="prod")
    assert other[0][0].episode_id != run([hits_of("P", 0)])[0][0][0].episode_id


def test_an_alert_says_when_where_and_how_much():
    told, _ = drawn("P F . .")
    firing, updated, resolved = (window[0] for window in told[:3])
    assert (firing.entity, firing.family, firing.severity, firing.rests_on) == (
        "e-1",
        "rover",
        "warning",
        "provisional",
    )
    assert (firing.starts_at_ms, firing.ends_at_ms) == (BASE * 1000, None)
    assert firing.observed_at_ms == firing.window_end_ms == (BASE + HOP - 1) * 1000
    assert firing.window_start_ms == (BASE + HOP - LENGTH) * 1000
    assert (firing.score, firing.threshold, firing.p_value, firing.missing_fraction) == (4.0, 3.0, 0.001, 0.25)
    assert firing.source == SourceRange("telemetry", 0, 0, 9)
    assert (firing.model.name, firing.model.version) == ("rover", "v1")
    assert firing.summary == "e-1: a is 7, expected 0 to 2"
    assert updated.rests_on == "final"
    assert (resolved.ends_at_ms, resolved.summary) == (BASE * 1000, "e-1 behaves normally again")


def test_a_summary_says_what_the_commands_explain():
    evidence = [msgspec.structs.replace(EVIDENCE[0], explained=0.25)]
    told, _ = run([[hit("final", 0)._replace(channels=evidence, commands=("c1", "c7"))]])
    assert told[0][0].commands == ["c1", "c7"]
    assert told[0][0].summary.endswith("expected 0 to 2; c1, c7 commanded, which explains 25% of it")


def test_a_summary_does_not_invent_what_is_not_known():
    missing = [msgspec.structs.replace(EVIDENCE[0], observed=None)]
    told, _ = run([[hit("provisional", 0)._replace(channels=missing)]])
    assert told[0][0].summary == "e-1: a is missing, expected 0 to 2"
    told, _ = run([[hit("provisional", 0)._replace(channels=[])]])
    assert told[0][0].summary == "e-1 behaves unlike its normal self"


def adapted_at(windows, line):
    """Read a time line of which these windows' hits say that the level was adapted to."""
    drawn = [hits_of(token, number) for number, token in enumerate(line.split())]
    return [[one._replace(adapted=number in windows) for one in hits] for number, hits in enumerate(drawn)]


SETTLING = 3 * HOP
SETTLES = msgspec.structs.replace(MANIFEST, decision=msgspec.structs.replace(MANIFEST.decision, adapt_after=SETTLING))


def told_of(windows, **more):
    episode, told = None, []
    for number, hits in enumerate(windows):
        step = advance(SETTLES, "telltale", notice(number), hits, episode, 0.0, **more)
        told.append(step.alerts)
        episode = step.episode
    return told


@pytest.mark.parametrize("windows", [[1], [2], [1, 2]])
def test_an_alarm_that_became_the_normal_level_is_told_as_adapting_once_and_ends_so(windows):
    """One stage may adapt before the other; what was learnt stays told until the episode ends."""
    messages = [alert for told in told_of(adapted_at(windows, "F F F . . . . .")) for alert in told]
    assert [alert.state for alert in messages] == ["firing", "updated", "resolved"]
    assert [alert.adapting for alert in messages] == [False, True, True]
    why = "adapting: e-1 has deviated for so long that this counts as normal from now on"
    assert [alert.summary.startswith(why) for alert in messages] == [False, True, True]
    assert messages[-1].summary.endswith("new level learned")


def test_what_comes_until_the_new_level_has_settled_is_the_same_episode():
    """On and off about the new level: three messages in all; without adapting it is a new episode every time."""
    line = "F F . . F . . F . . F . . . . ."
    settling = [alert.state for told in told_of(adapted_at([1], line)) for alert in told]
    assert settling == ["firing", "updated", "resolved"]
    repeating = [alert.state for told in told_of(adapted_at([], line)) for alert in told]
    assert repeating == ["firing", "resolved"] * 4


def test_a_worse_anomaly_is_told_while_the_level_settles():
    messages = [alert for told in told_of(adapted_at([1], "F F . Fc . . . . .")) for alert in told]
    assert [(alert.state, alert.severity) for alert in messages] == [
        ("firing", "warning"),
        ("updated", "warning"),
        ("updated", "critical"),
        ("resolved", "critical"),
    ]


def test_an_entity_fires_before_it_adapts_even_if_one_hop_is_enough():
    (first, *_), *_ = told_of(adapted_at([0], "F . . . . ."))
    assert first.state == "firing"


def test_an_alert_of_an_entity_that_moved_before_says_so():
    ((firing,), *_) = told_of([hits_of("P", 0)], adapting=True)
    assert firing.adapting
    assert firing.summary == "e-1: a is 7, expected 0 to 2; adapting: its level has moved since training"


def test_the_message_tells_the_peak_of_the_episode():
    told, _ = drawn("P Pc P . . .")
    assert [alert.score for window in told for alert in window] == [4.0, 30.0, 30.0]


@given(st.floats(0, 100), st.floats(0, 100))
def test_a_larger_deviation_is_never_less_severe(one, other):
    ranks = [["warning", "error", "critical"].index(severity_of(z)) for z in sorted((one, other))]
    assert ranks == sorted(ranks)


def test_an_episode_of_before_was_not_ended_by_adapting():
    _, episode = drawn("P")
    stored = msgspec.to_builtins(episode)
    del stored["adapted"]
    stored["peak"] = stored["peak"][:-1]
    assert msgspec.convert(stored, Episode) == episode
