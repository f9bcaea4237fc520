"""Commands that were sent, what follows from them, and a network that has learned to tell."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from detector.command_effect import Question, explain_by_commands, explained_shares, usual_states
from detector.decision import Hit
from detector.denoiser import Denoiser
from detector.diffusion import NoiseSchedule
from detector.engine import Detector, WindowBatch
from detector.manifest import DenoiserConfig, ScoringConfig
from stream.contracts import ChannelEvidence, SourceRange, WindowNotice
from stream.grid import Geometry
from tests.builders import random_windows, untrained

LENGTH, PEAK, STEP = 96, 80, 60
GEOMETRY = Geometry(length=LENGTH, hop=16, final_delay=20, slack=64)


def hit(notice, peak=PEAK, channel="m0"):
    slot = notice.end_slot - LENGTH + 1 + peak
    evidence = [ChannelEvidence(channel=channel, share=1.0, observed=1.0, expected=0.0, low=-0.1, high=0.1)]
    return Hit("final", slot, slot, slot, score=9.0, threshold=3.0, p_value=0.001, z=9.0, channels=evidence)


def notice_of(entity, end_slot):
    return WindowNotice(
        entity=entity,
        family="test",
        interval_ms=1000,
        end_slot=end_slot,
        length=LENGTH,
        new_slots=16,
        final_delay=20,
        rows=LENGTH,
        ring=0,
        first_slot=end_slot - LENGTH + 1,
        source=SourceRange("telemetry", 0, 0, 0),
        trigger_ms=0,
    )


@pytest.fixture(scope="module")
def obedient() -> Detector:
    """Train a network on a channel that does, with noise, what its one command says: -0.8 off, 0.8 on."""
    config = DenoiserConfig(numeric=1, commands=1, entities=1, layers=2, width=16, state=8)
    scoring = ScoringConfig(smoothing_size=31)
    manifest, _ = untrained(
        numeric=1, commands=1, entities=("E-1",), geometry=GEOMETRY, scoring=scoring, denoiser=config
    )
    schedule = NoiseSchedule(config.timesteps, config.beta_first, config.beta_last)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Denoiser(config)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(120):
            command = stepped(16)
            x = 0.8 * command + 0.05 * torch.randn(16, 1, LENGTH)
            timestep, noise = torch.randint(1, config.timesteps + 1, (16,)), torch.randn_like(x)
            gates = network.encode_condition(command, torch.ones(16, dtype=torch.int64))
            found = network(schedule.q_sample(x, timestep, noise), torch.ones_like(x), timestep, gates)
            optimizer.zero_grad()
            (found - noise).square().mean().backward()
            optimizer.step()
        weights = network.state_dict()
    entity = msgspec.structs.replace(manifest.entities[0], minimum=[-1.0], maximum=[1.0])
    return Detector(msgspec.structs.replace(manifest, entities=[entity]), weights)


def stepped(windows):
    """Draw commands (windows, 1, LENGTH), -1 and 1, that change at a random slot in half of the windows."""
    at = torch.randint(-LENGTH, LENGTH, (windows, 1, 1))
    sign = torch.randint(0, 2, (windows, 1, 1)) * 2 - 1
    return torch.where(torch.arange(LENGTH) < at, -sign, sign).float()


def window(*, commanded, observed):
    """Make a window (2, LENGTH): value and command step, or not, at the same slot."""
    after = np.arange(LENGTH) >= STEP
    value = np.where(after & observed, 0.8, -0.8) + 0.02 * np.sin(np.arange(LENGTH))
    return np.stack([value, after & commanded]).astype(np.float32)


def explained(detector, values):
    notice = notice_of("E-1", 10**6)
    (found,) = explain_by_commands(detector, [Question(notice, values, hit(notice))])
    return found.commands, found.channels[0].explained


def test_a_step_that_was_commanded_is_explained(obedient):
    commands, share = explained(obedient, window(commanded=True, observed=True))
    assert commands == ("c0",)
    assert share > 0.7


def test_a_step_that_a_command_did_not_ask_for_is_not_explained(obedient):
    """The command goes off and on again, the value jumps long after: what is expected does not follow."""
    values = window(commanded=False, observed=True)
    values[1, PEAK - 40 : PEAK - 38] = 1
    commands, share = explained(obedient, values)
    assert commands == ("c0",)
    assert share < 0.3


def test_a_command_that_was_not_obeyed_explains_nothing(obedient):
    commands, share = explained(obedient, window(commanded=True, observed=False))
    assert (commands, share) == (("c0",), 0)


def test_a_hit_without_commands_around_it_stays_as_it_is(obedient):
    notice = notice_of("E-1", 10**6)
    values = window(commanded=False, observed=True)
    assert explain_by_commands(obedient, [Question(notice, values, hit(notice))]) == [hit(notice)]


def test_missing_commands_are_not_commands(obedient):
    notice = notice_of("E-1", 10**6)
    values = window(commanded=False, observed=True)
    values[1, STEP - 20 :] = np.nan
    assert explain_by_commands(obedient, [Question(notice, values, hit(notice))]) == [hit(notice)]


def test_what_is_said_of_a_hit_does_not_depend_on_the_others(obedient):
    """Also where there are more than one pass takes, some of them without commands around them."""
    cases = [(True, True), (False, True), (True, False)] * 12
    questions = []
    for number, (commanded, observed) in enumerate(cases):
        notice = notice_of("E-1", 10**6 + number)
        questions.append(Question(notice, window(commanded=commanded, observed=observed), hit(notice)))
    together = explain_by_commands(obedient, questions)
    for question, found in zip(questions, together, strict=True):
        (alone,) = explain_by_commands(obedient, [question])
        assert (found.commands, found.peak_slot) == (alone.commands, alone.peak_slot)
        assert found.channels[0].explained == pytest.approx(alone.channels[0].explained, abs=2e-4)
    assert explain_by_commands(obedient, []) == []


@pytest.mark.parametrize("config", [{"commands": 0}, {"commands": 3, "use_commands": False}])
def test_a_network_without_commands_says_nothing(config):
    denoiser = DenoiserConfig(numeric=2, entities=2, layers=2, width=8, state=8, **config)
    manifest, weights = untrained(commands=config["commands"], geometry=GEOMETRY, denoiser=denoiser)
    values = random_windows(manifest, ["P-1"]).values[0]
    notice = notice_of("P-1", 10**6)
    assert explain_by_commands(Detector(manifest, weights), [Question(notice, values, hit(notice))]) == [hit(notice)]


def test_what_is_expected_from_commands_does_not_depend_on_the_other_windows():
    manifest, weights = untrained()
    detector = Detector(manifest, weights)
    windows = random_windows(manifest, ["P-1", "M-6", "never-trained"])
    together = detector.expect_from_commands(windows)
    for i in range(3):
        alone = WindowBatch(windows.entities[i : i + 1], windows.end_slots[i : i + 1], windows.values[i : i + 1])
        np.testing.assert_allclose(detector.expect_from_commands(alone)[0], together[i], rtol=0, atol=1e-5)


SERIES = arrays.arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=32))


@given(SERIES, SERIES, SERIES)
def test_shares_lie_between_nothing_and_all(observed, commanded, uncommanded):
    shares = explained_shares(observed, commanded, uncommanded)
    assert ((shares >= 0) & (shares <= 1)).all()


@given(SERIES, SERIES)
def test_what_happened_as_commanded_is_explained_and_what_changes_nothing_explains_nothing(observed, other):
    apart = np.abs(observed - other).sum(1) > 1e-3
    assert (explained_shares(observed, observed, other)[apart] == 1).all()
    assert (explained_shares(observed, other, other) == 0).all()


@given(arrays.arrays(np.float32, (4, 9), elements=st.sampled_from([0.0, 1.0, np.nan])))
def test_the_usual_state_is_the_one_of_most_present_slots(commands):
    for state, row in zip(usual_states(commands), commands, strict=True):
        assert state == ((row == 1).sum() > (row == 0).sum())
