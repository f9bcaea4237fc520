"""The fates of a failure. Owns the exception tree; does not know who raises or who handles.

Exception
├── TelltaleError
│   ├── ContractError      the record is bad: dead-letter it and go on
│   ├── TransientError     a broker or Redis is away: retry inside one deadline
│   │   └── FencedError    another owner took over: drop the state and rejoin
│   ├── AccessError        a broker or Redis refuses login, certificate or right: exit 1, no retry helps
│   ├── CheckpointError    the checkpoint is broken or foreign: keep the old model
│   └── UsageError         the person or the settings asked for something impossible: exit 2
└── anything else          a bug: log the coordinates once, exit non-zero, commit nothing
"""


class TelltaleError(Exception):
    """Base of every failure that has a decided fate."""


class ContractError(TelltaleError):
    """A record breaks its contract; the message says what was wanted and what came."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep a countable reason (a short slug, safe as a metric label) beside the full detail."""
        super().__init__(detail)
        self.reason = reason


class TransientError(TelltaleError):
    """Something outside is unreachable for now."""


class FencedError(TransientError):
    """Another process owns this partition now; whatever this one remembers of it is void."""


class AccessError(TelltaleError):
    """A server refuses us, or we refuse it: wrong password, untrusted certificate, missing right."""


class CheckpointError(TelltaleError):
    """A checkpoint bundle can't be trusted: hash, shape, finiteness, schema or golden scores differ."""


class UsageError(TelltaleError):
    """The caller asked for something that can't be done; nothing has been changed."""
