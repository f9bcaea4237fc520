"""What a context encoder says of whole entities: the table of vectors that stands for them when windows are scored."""

import torch
from torch import Tensor

from detector.denoiser import UNSEEN_ENTITY, Denoiser
from detector.manifest import DenoiserConfig
from training.sampling import WindowSampler

# Where the vectors of entities stand among a checkpoint's weights, (E + 1, H).
ENTITY_VECTORS = "condition.entity.weight"
_STRETCHES = 32


@torch.no_grad()
def encode_entities(config: DenoiserConfig, weights: dict[str, Tensor], sampler: WindowSampler) -> dict[str, Tensor]:
    """Return the table with the mean over stretches of every series' fitted rows in rows 1, 2, ..., by its name.

    weights: of the denoiser alone. Row 0, which training fits to windows shown without their entity, stays.
    """
    denoiser = Denoiser(config)
    denoiser.load_state_dict(weights)
    encoder = denoiser.condition.encoder
    if encoder is None:
        raise ValueError("the network has no context encoder")
    vectors = [encoder(sampler.stretches(index, _STRETCHES)).mean(0) for index in range(sampler.series)]
    unseen = weights[ENTITY_VECTORS][UNSEEN_ENTITY]
    return {ENTITY_VECTORS: torch.stack([unseen, *vectors])}
