"""How large the experiments are: `full` is the paper's own size, for a GPU; `quick` is what two cores do in minutes."""

import msgspec

from stream.grid import Geometry
from training.presets import PRESETS, Preset

FAMILIES = ("SMAP", "MSL", "SMD")


class NewestRows(msgspec.Struct, frozen=True):
    """How many rows of every entity are used, its newest ones."""

    train: int
    test: int


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of all experiments.

    detector: of Tables 3 and 4 and Figure 6. cascade: of Tables 5 and 6 and Figure 5, but for its number of layers,
    which are `layers`. detector_steps: train steps by family; without, the preset's epochs, as for cascade_steps.
    opponent_steps: train steps of the other networks of Table 3. levels: losses that runs are compared at, the last
    one the paper's. span: train steps over which a loss is averaged before it counts. rows: families that are thinned.
    """

    name: str
    detector: Preset
    cascade: Preset
    layers: tuple[int, ...]
    detector_steps: dict[str, int]
    cascade_steps: int | None
    opponent_steps: int
    levels: tuple[float, ...]
    span: int
    rows: dict[str, NewestRows]

    def limited(self, train_steps: int | None) -> "Scale":
        """Give every network this number of train steps, if there is one."""
        if train_steps is None:
            return self
        return msgspec.structs.replace(
            self,
            detector_steps=dict.fromkeys(FAMILIES, train_steps),
            cascade_steps=train_steps,
            opponent_steps=train_steps,
        )


# The paper's preset with a tenth of its width, shorter frames, patches, and a learning rate fit for so few train steps.
_SMALL = msgspec.structs.replace(
    PRESETS["paper"],
    geometry=Geometry(length=512, hop=256, final_delay=12, slack=1024),
    layers=4,
    width=48,
    state=32,
    patch=4,
    learning_rate=1e-2,
    epochs=None,
    recompute=False,
)

SCALES: dict[str, Scale] = {
    "quick": Scale(
        name="quick",
        detector=_SMALL,
        cascade=msgspec.structs.replace(_SMALL, width=32, batch=16),
        layers=(2, 4, 6, 8),
        detector_steps={"SMAP": 500, "MSL": 500, "SMD": 120},
        cascade_steps=400,
        opponent_steps=600,
        levels=(0.5, 0.3, 0.2, 0.15, 1e-2, 1e-3),
        span=25,
        rows={"SMD": NewestRows(train=4000, test=6000)},
    ),
    "full": Scale(
        name="full",
        detector=PRESETS["paper"],
        cascade=PRESETS["paper"],
        layers=(6, 12, 18, 24),
        detector_steps={},
        cascade_steps=None,
        opponent_steps=20_000,
        levels=(0.1, 1e-2, 1e-3),
        span=25,
        rows={},
    ),
}
