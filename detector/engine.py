"""The reconstruction engine: windows of raw telemetry in, scores and explanation out. Knows no file and no broker.

What a window gets does not depend on the other windows of its batch. `Detector.score` is the fast path;
`Detector.score_plainly` is the reference it is tested against.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.companions import PREFIX
from detector.comparison import Comparison, Inputs, Views
from detector.denoiser import Denoiser
from detector.diffusion import NoiseSchedule, ddim
from detector.entity_table import EntityTable
from detector.fused import FusedDenoiser, Precision, can_fuse
from detector.manifest import Manifest
from detector.noise import slot_noise
from detector.threads import side_by_side

# Normal values fill [-1, 1], so nothing beyond is ever expected (the clipping of x0 in Ho et al.'s sampler).
EXPECTED_LIMIT = 1.0
# Windows and network runs (windows times starts) in one pass: few enough for activations to stay in a core's cache.
WINDOWS_PER_PASS, RUNS_PER_PASS = 32, 64


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Windows to score. values: (B, C_all, L) float32, raw units, channels in manifest order, NaN = missing.

    Position j of a window is slot `end_slot - L + 1 + j`.
    """

    entities: Sequence[str]
    end_slots: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WindowScores:
    """What the detector says of windows, float32. NaN scores mark slots without any present numeric channel.

    Where only a window's newest slots were asked for, all fields are NaN in the others.

    provisional, final: (B, L); final is final only for slots whose `final_delay` later slots are inside the window.
    residual: (B, C, L), over scale and level, of the view that finds a value oddest, 0 where missing.
    expected: (B, C, L), raw units, what that view expected. band: (B, C, L), raw units, half-width of the normal band
    around it. C: numeric channels only.
    """

    provisional: NDArray[np.float32]
    final: NDArray[np.float32]
    residual: NDArray[np.float32]
    expected: NDArray[np.float32]
    band: NDArray[np.float32]


class Detector:
    """A checkpoint in memory, ready to score windows of `manifest.geometry.length` slots."""

    def __init__(
        self, manifest: Manifest, weights: dict[str, Tensor], device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        """Build the network from the manifest and cache its kernels. Raises RuntimeError if the weights don't fit.

        precision: of the network's products, whose sums and results it rounds too; the plain path knows only float32.
        """
        self.manifest = manifest
        self.device = torch.device(device)
        config = manifest.denoiser
        self.denoiser = Denoiser(config)
        self.denoiser.load_state_dict({name: w for name, w in weights.items() if not name.startswith(PREFIX)})
        self.denoiser.to(self.device).eval()
        self._precision = precision
        self._fast = self._prepare(manifest.geometry.length)
        self.schedule = NoiseSchedule(config.timesteps, config.beta_first, config.beta_last).to(self.device)
        self._calibration = EntityTable(manifest, self.device)
        self._comparison = Comparison(manifest, weights, self._calibration, self.device)
        kinds = [channel.kind for channel in manifest.channels]
        self.numeric = [i for i, kind in enumerate(kinds) if kind == "numeric"]
        self.commands = [i for i, kind in enumerate(kinds) if kind == "command"]
        self._windows_per_pass = max(1, min(WINDOWS_PER_PASS, RUNS_PER_PASS // len(manifest.scoring.starts)))
        self._command_columns = _as_slice(self.commands)
        self._pool: ThreadPoolExecutor | None = None

    def score(self, windows: WindowBatch, recent: int | None = None) -> WindowScores:
        """Score windows; see `WindowScores`. Raises ValueError on a wrong shape, FloatingPointError on a NaN score.

        recent: how many of a window's newest slots are wanted, all if it is None. A new window's are the slots that
        are new and the `final_delay` before them.
        """
        return self._score(windows, self._chunk(len(windows.entities)), self._reconstruct, recent)

    def score_plainly(self, windows: WindowBatch) -> WindowScores:
        """Score as `score` does, window by window, start by start, with kernels built anew in every call."""
        plain = self.plain_denoiser()
        return self.score_with(windows, lambda inputs: self._reconstruct_plainly(plain, inputs))

    def score_with(
        self, windows: WindowBatch, reconstruct: Callable[[Inputs], Tensor], recent: int | None = None
    ) -> WindowScores:
        """Score window by window what `reconstruct` expects, (S, B, C, L) in scaled units; see `score`."""
        return self._score(windows, 1, reconstruct, recent)

    def plain_denoiser(self) -> Denoiser:
        """Return the network as it was trained, nothing prepared."""
        plain = Denoiser(self.manifest.denoiser).to(self.device).eval()
        plain.load_state_dict(self.denoiser.state_dict())
        return plain

    @torch.inference_mode()
    def reconstruct(self, windows: WindowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return x (B, C, L), NaN where missing, and its reconstructions (S, B, C, L), in scaled units."""
        self._check(windows)
        parts = [self.inputs(part) for part in _chunks(windows, self._windows_per_pass)]
        expected = torch.cat([self._reconstruct(part) for part in parts], 1)
        x = torch.cat([part.x.where(part.valid, torch.nan) for part in parts])
        return x.cpu().numpy(), expected.cpu().numpy()

    @torch.inference_mode()
    def expect_from_commands(self, windows: WindowBatch) -> NDArray[np.float32]:
        """Return what is expected of the numeric channels from the last timestep, (B, C, L), raw units.

        There noise hides all but the slow parts of the windows' own values, so the rest follows from the commands.
        """
        self._check(windows)
        inputs = self.inputs(windows, [self.schedule.timesteps])
        return self._calibration.raw(self._reconstruct(inputs, steps=1)[0], inputs.row).cpu().numpy()

    @torch.inference_mode()
    def training_residuals(self, windows: WindowBatch) -> NDArray[np.float32]:
        """Return |x - expected| of every start and companion in scaled units, (V, B, C, L), NaN where missing.

        For windows of the training data, to calibrate on: what a companion remembers of them doesn't count.
        """
        parts = self._training_views(windows)
        return torch.cat([p.residual.where(p.valid, torch.nan) for p in parts], 1).cpu().numpy()

    @torch.inference_mode()
    def training_scores(self, windows: WindowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return provisional and final scores by group before they are put on their levels, each (G, B, L)."""
        parts = [self._comparison.group_scores(views) for views in self._training_views(windows)]
        provisional, final = (
            torch.cat([part[stage] for part in parts], 1).cpu().numpy() for stage in ("provisional", "final")
        )
        return provisional, final

    def _training_views(self, windows: WindowBatch) -> list[Views]:
        self._check(windows)
        length = self.manifest.geometry.length
        slots = torch.arange(1 - length, 1, device=self.device)
        found = []
        for part in _chunks(windows, self._windows_per_pass):
            inputs = self.inputs(part)
            own_slots = torch.from_numpy(part.end_slots).to(self.device)[:, None] + slots
            found.append(self._comparison.views(inputs, self._reconstruct(inputs), length, own_slots))
        return found

    def _chunk(self, windows: int) -> int:
        """Return how many of these windows a pass takes: no more than fit, and some for every thread."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        return max(1, min(self._windows_per_pass, -(-windows // threads)))

    def _score(
        self, windows: WindowBatch, chunk: int, reconstruct: Callable[[Inputs], Tensor], recent: int | None = None
    ) -> WindowScores:
        self._check(windows)
        if not len(windows.entities):
            return self._nothing()
        length = self.manifest.geometry.length
        recent = length if recent is None else min(max(recent, 1), length)

        @torch.inference_mode()
        def work(part: WindowBatch) -> tuple[Tensor, ...]:
            inputs = self.inputs(part)
            views = self._comparison.views(inputs, reconstruct(inputs), self._comparison.slots_for(recent))
            return self._comparison.scores(views, recent)

        parts = self._side_by_side(work, _chunks(windows, chunk))
        fields = [torch.cat(field).cpu().numpy() for field in zip(*parts, strict=True)]
        _refuse_non_finite(windows, fields[0], fields[1], self.numeric)
        return WindowScores(*(_widened(field, length) for field in fields))

    def _side_by_side(
        self, work: Callable[[WindowBatch], tuple[Tensor, ...]], parts: list[WindowBatch]
    ) -> list[tuple[Tensor, ...]]:
        threads = torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or len(parts) == 1:
            return [work(part) for part in parts]
        if self._pool is None:
            self._pool = side_by_side(threads)
        return list(self._pool.map(work, parts))

    def _nothing(self) -> WindowScores:
        length = self.manifest.geometry.length
        series, channels = np.empty((0, length), np.float32), np.empty((0, len(self.numeric), length), np.float32)
        return WindowScores(series, series, channels, channels, channels)

    def _check(self, windows: WindowBatch) -> None:
        wanted = (len(windows.entities), len(self.manifest.channels), self.manifest.geometry.length)
        if windows.values.shape != wanted or windows.end_slots.shape != wanted[:1]:
            raise ValueError(
                f"windows want values {wanted} and as many end slots as entities, "
                f"got values {windows.values.shape} and end slots {windows.end_slots.shape}"
            )

    def inputs(self, windows: WindowBatch, starts: Sequence[int] | None = None) -> Inputs:
        """Turn windows into the network's terms. starts: start timesteps, where not those that are scored from."""
        starts = self.manifest.scoring.starts if starts is None else starts
        row = self._calibration.rows(windows.entities)
        values = torch.from_numpy(windows.values[:, self.numeric]).to(self.device)  # (B, C, L)
        valid = ~values.isnan()
        x = self._calibration.scale_values(values, row).where(valid, 0)
        commands = torch.from_numpy(2 * windows.values[:, self._command_columns]).to(self.device)  # (B, K, L)
        commands = commands.sub_(1).clamp_(-1, 1).nan_to_num_(0)
        noise = self._noise(windows, starts)
        index, start = self._calibration.index[row], torch.tensor(starts, device=self.device)
        return Inputs(x, valid, commands, row, index, start, noise, windows.end_slots.tolist())

    def _noise(self, windows: WindowBatch, starts: Sequence[int]) -> Tensor:
        slots = windows.end_slots[:, None] + np.arange(1 - self.manifest.geometry.length, 1)
        draws = [
            slot_noise(windows.entities, slots, len(self.numeric), start, self.manifest.scoring.noise_seed)
            for start in starts
        ]
        return torch.from_numpy(np.stack(draws)).to(self.device)  # (S, B, C, L)

    def _reconstruct(self, inputs: Inputs, steps: int | None = None) -> Tensor:
        """Return x0 from every start, (S, B, C, L); the condition is encoded once, the starts share each pass.

        steps: network calls from each start, where not those that are scored by.
        """
        starts, batch = len(inputs.starts), len(inputs.x)
        condition = self._fast.encode_condition(inputs.commands, inputs.entity)
        valid = inputs.valid.float().repeat(starts, 1, 1)  # (S B, C, L)
        start = inputs.starts.repeat_interleave(batch)  # (S B,)
        x_t = self.schedule.q_sample(inputs.x_in().repeat(starts, 1, 1), start, inputs.noise.flatten(0, 1))

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            with self._autocast():
                noise: Tensor = self._fast(x_t * valid, valid, timestep, condition)
            return noise.float()

        x0 = ddim(self.schedule, denoise, x_t, start, steps or self.manifest.scoring.sampler_steps)
        return x0.view(starts, *inputs.x.shape).clamp(-EXPECTED_LIMIT, EXPECTED_LIMIT)

    def _prepare(self, length: int) -> Denoiser | FusedDenoiser:
        """Return what runs the network fastest on windows of this length."""
        if can_fuse(self.denoiser, length, self._precision):
            return FusedDenoiser(self.denoiser, length, self._precision)
        self.denoiser.prepare(length)
        return self.denoiser

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bfloat16")

    def _reconstruct_plainly(self, plain: Denoiser, inputs: Inputs) -> Tensor:
        valid = inputs.valid.float()
        found = []
        for start, noise in zip(self.manifest.scoring.starts, inputs.noise, strict=True):

            def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
                condition = plain.encode_condition(inputs.commands, inputs.entity)
                return plain(x_t * valid, valid, timestep, condition)  # type: ignore[no-any-return]

            timestep = torch.full((len(inputs.x),), start, device=self.device)
            x_t = self.schedule.q_sample(inputs.x_in(), timestep, noise)
            found.append(ddim(self.schedule, denoise, x_t, timestep, self.manifest.scoring.sampler_steps))
        return torch.stack(found).clamp(-EXPECTED_LIMIT, EXPECTED_LIMIT)


def _as_slice(columns: list[int]) -> slice | list[int]:
    """Return columns that follow each other as a slice, which takes no copy and keeps the order in memory."""
    together = bool(columns) and columns == list(range(columns[0], columns[-1] + 1))
    return slice(columns[0], columns[-1] + 1) if together else columns


def _chunks(windows: WindowBatch, size: int) -> list[WindowBatch]:
    cuts = [slice(start, start + size) for start in range(0, len(windows.entities), size)]
    return [WindowBatch(windows.entities[cut], windows.end_slots[cut], windows.values[cut]) for cut in cuts]


def _widened(newest: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Put NaN before the newest slots (..., n): (..., L)."""
    if newest.shape[-1] == length:
        return newest
    wide = np.full((*newest.shape[:-1], length), np.nan, np.float32)
    wide[..., -newest.shape[-1] :] = newest
    return wide


def _refuse_non_finite(
    windows: WindowBatch, provisional: NDArray[np.float32], final: NDArray[np.float32], numeric: list[int]
) -> None:
    recent = provisional.shape[1]
    present = ~np.isnan(windows.values[:, numeric, -recent:]).all(1)  # (B, recent)
    broken = present & ~(np.isfinite(provisional) & np.isfinite(final))
    if broken.any():
        window, position = np.argwhere(broken)[0]
        slot = windows.end_slots[window] - recent + 1 + position
        raise FloatingPointError(f"score of {windows.entities[window]} at slot {slot} is not finite")
