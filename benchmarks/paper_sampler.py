"""The paper's sampler as a detector, to compare with. Measures nothing."""

from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.comparison import Inputs
from detector.denoiser import Denoiser
from detector.diffusion import ancestral
from detector.engine import EXPECTED_LIMIT, Detector, WindowBatch, WindowScores
from detector.noise import slot_noise

# Algorithm 2 and section 4.4: from this timestep, a call of the network for each down to 1.
PAPER_START = 20
# Far from the start timesteps, whose noise is their own.
_NOISE_OF_TIMESTEPS = 1000


class PaperSampler(Detector):
    """The same network sampled as the paper does: a call for every timestep, kernels built anew, window by window."""

    def score(self, windows: WindowBatch, recent: int | None = None) -> WindowScores:
        """See `Detector.score`."""
        plain, found = self.plain_denoiser(), list[WindowScores]()
        for index in range(len(windows.entities)):
            one = part(windows, slice(index, index + 1))
            found.append(self.score_with(one, lambda inputs, one=one: self.sample(plain, inputs, one), recent))  # type: ignore[misc]
        names = [field.name for field in fields(WindowScores)]
        return WindowScores(*(np.concatenate([getattr(scores, name) for scores in found]) for name in names))

    @torch.inference_mode()
    def reconstruct(self, windows: WindowBatch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Detector.reconstruct`."""
        plain, found = self.plain_denoiser(), list[Tensor]()
        x, _ = super().reconstruct(windows)
        for index in range(len(windows.entities)):
            one = part(windows, slice(index, index + 1))
            found.append(self.sample(plain, self.inputs(one), one))
        return x, torch.cat(found, 1).numpy()

    @torch.inference_mode()
    def sample(self, plain: Denoiser, inputs: Inputs, window: WindowBatch) -> Tensor:
        """Return x0 of Algorithm 2 for one window, (1, 1, C, L); every timestep has noise of its own by slot."""
        valid = inputs.valid.float()
        slots = window.end_slots[:, None] + np.arange(1 - inputs.x.shape[-1], 1)
        noise = [
            slot_noise(window.entities, slots, inputs.x.shape[1], _NOISE_OF_TIMESTEPS + timestep, 0)
            for timestep in range(PAPER_START, 1, -1)
        ]

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            predicted: Tensor = plain(
                x_t * valid, valid, timestep, plain.encode_condition(inputs.commands, inputs.entity)
            )
            return predicted

        x_t = self.schedule.q_sample(inputs.x_in(), torch.tensor([PAPER_START]), inputs.noise[0])
        x0 = ancestral(self.schedule, denoise, x_t, PAPER_START, torch.from_numpy(np.stack(noise)))
        return x0.clamp(-EXPECTED_LIMIT, EXPECTED_LIMIT)[None]


def part(windows: WindowBatch, cut: slice) -> WindowBatch:
    """Take some of the windows."""
    return WindowBatch(windows.entities[cut], windows.end_slots[cut], windows.values[cut])
