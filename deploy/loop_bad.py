"""A broken network that claims to be good, to see what becomes of it. For the loop demo alone."""

import time

import torch
from torch import Tensor

from detector.checkpoint import Bundle, Golden
from detector.engine import Detector, WindowBatch
from detector.registry import Registry
from stream.contracts import Gate, ModelEvent, ModelEventKind
from stream.model_events import announce
from stream.settings import Settings


def spoilt(bundle: Bundle, seed: int) -> tuple[dict[str, Tensor], Golden]:
    """Return a model's weights with as much noise as they have of their own, and what they make of its golden windows.

    So it scores its golden windows as it says, and nothing but its work can tell that it is broken.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()  # companions count what they keep
        else tensor
        for name, tensor in bundle.weights.items()
    }
    golden = bundle.golden
    scores = Detector(bundle.manifest, weights).score(WindowBatch(golden.entities, golden.end_slots, golden.values))
    return weights, Golden(golden.entities, golden.end_slots, golden.values, scores.provisional, scores.final)


def offer_bad(settings: Settings, registry: Registry, family: str, seed: int) -> str:
    """Publish the champion with a spoilt network, say that it was trained and that its trial went well; return it.

    Raises TransientError where registry or broker can't be reached.
    """
    champion = registry.alias(family, "champion") or ""
    bundle = registry.read(family, champion)
    version = registry.publish(family, bundle.manifest, *spoilt(bundle, seed))
    told: list[tuple[ModelEventKind, str | None]] = [("training", None), ("announced", version)]
    for kind, about in told:
        event = ModelEvent(
            kind=kind,
            family=family,
            version=about,
            champion=champion,
            at_ms=round(time.time() * 1000),
            reason="by hand",
            gates=[Gate("claimed", True, None, None)] if about else [],
            who="loop demo",
        )
        event = registry.record(event)
    announce(settings, event)
    return version
