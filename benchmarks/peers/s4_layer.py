# mypy: ignore-errors, what it imports is in another environment
"""The S4D convolution of the lrnnx package beside ours, same weights, in turns on one thread.

Arguments: batch, width, state, length, rounds, seed. Writes one line of JSON.
"""

import contextlib
import json
import os
import sys
import types
from importlib.metadata import version
from pathlib import Path

# The package imports CUDA extensions that exist only where nvcc compiled them, and takes KeOps, which then asks for a
# GPU. The S4D layer needs neither: it has a plain path in torch.
for absent in ("selective_scan_cuda", "simplified_scan_cuda"):
    sys.modules[absent] = types.ModuleType(absent)
for hidden in ("pykeops", "pykeops.torch"):
    sys.modules[hidden] = None
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402
from lrnnx.models.lti.s4d import S4D  # noqa: E402

from benchmarks.turns import in_turns, passes  # noqa: E402
from detector.s4 import CausalS4, S4DKernel  # noqa: E402


def make_twin(ours: CausalS4) -> torch.nn.Module:
    """Make the package's convolution with the weights of ours."""
    width, pairs = ours.kernel.A_imag.shape
    twin = S4D(width, d_state=2 * pairs, init="diag-lin", verbose=False)
    kernel = twin.layer.kernel
    with torch.no_grad():
        kernel.inv_dt.copy_(ours.kernel.log_dt[:, None])
        kernel.A_real.copy_(ours.kernel.log_A_real)
        kernel.A_imag.copy_(-ours.kernel.A_imag)  # it negates both parts
        kernel.B.copy_(torch.view_as_real(torch.ones(1, width, pairs, dtype=torch.complex64)))
        kernel.C.copy_(ours.kernel.C[None])
        twin.D.copy_(ours.D[None])
    return twin


def main() -> None:
    """Check that both say the same, then time them."""
    batch, width, state, length, rounds, seed = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    ours = CausalS4(S4DKernel(width, state))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        twin = make_twin(ours)

    def theirs(u: torch.Tensor) -> torch.Tensor:
        y, _ = twin.layer(u.transpose(1, 2))  # (B, 1, H, L)
        return y[:, 0] + twin.D.T * u

    u = torch.randn(batch, width, length)
    with torch.no_grad():
        difference = float((ours(u) - theirs(u)).abs().max())
    own, other = (list(module.parameters()) for module in (ours, twin))
    works = {
        f"{name} {part}": work
        for name, layer, weights in (("ours", ours, own), ("lrnnx", theirs, other))
        for part, work in passes(layer, u, weights).items()
    }
    found = {"timings": in_turns(works, rounds), "difference": difference, "version": version("lrnnx")}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
