# mypy: ignore-errors, what it imports is in another environment
"""PyOD's deep detectors with its defaults but for their epochs, on one thread. Arguments: see `detector_job.run`."""

import contextlib
import os
import random
import sys

import numpy as np
import torch
from detector_job import Rows, Score, run
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.deep_svdd import DeepSVDD
from pyod.models.ts_lstm import LSTMAD
from pyod.models.vae import VAE

# The defaults are 10, 30, 100 and 50; those of the last three take from one to several minutes an entity.
_EPOCHS, _LSTM_EPOCHS = 10, 3
# Of those that score by mini-batch: the default, 32, is what they are trained with, and slow.
_SCORED_AT_ONCE = 4096


def _by_batch(model) -> Score:
    return lambda rows: model.decision_function(rows, batch_size=_SCORED_AT_ONCE)


def auto_encoder(rows: Rows, seed: int) -> Score:
    """Reconstruction error of an autoencoder."""
    return _by_batch(AutoEncoder(epoch_num=_EPOCHS, random_state=seed, device="cpu", verbose=0).fit(rows))


def vae(rows: Rows, seed: int) -> Score:
    """Reconstruction error of a variational autoencoder."""
    return _by_batch(VAE(epoch_num=_EPOCHS, random_state=seed, device="cpu", verbose=0).fit(rows))


def deep_svdd(rows: Rows, seed: int) -> Score:
    """Distance to the centre of a learned sphere."""
    return DeepSVDD(rows.shape[1], epochs=_EPOCHS, random_state=seed, verbose=0).fit(rows).decision_function


def lstm(rows: Rows, seed: int) -> Score:
    """Error of the next row that an LSTM predicts."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return LSTMAD(epochs=_LSTM_EPOCHS).fit(rows).decision_function


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # progress bars
        run("pyod", {"autoencoder": auto_encoder, "vae": vae, "deep-svdd": deep_svdd, "lstm": lstm}, sys.argv[1:])
