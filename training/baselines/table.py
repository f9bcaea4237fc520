"""Every baseline by name: the rows of the paper's Table 3 in its order, then the honest ones."""

from collections.abc import Callable

from training.baselines.beatgan import BeatGAN
from training.baselines.cluster_balance import ClusterBalance
from training.baselines.diffadt import DiffADT
from training.baselines.kernel_methods import KernelPCA, OneClassSupportVectors
from training.baselines.localised_proximity import LocalisedProximity
from training.baselines.lstm_autoencoder import LSTMAutoencoder
from training.baselines.protocol import Baseline, Options
from training.baselines.ridge import RidgeAR
from training.baselines.simple import MedianDeviation, NearestNeighbour, PCAError, Random

BASELINES: dict[str, Callable[[Options], Baseline]] = {
    "kernel-pca": lambda options: KernelPCA(options.seed),
    "oc-svm": lambda options: OneClassSupportVectors(options.seed),
    "oc-alp": lambda options: LocalisedProximity(options.seed),
    "oc-lcb": lambda options: ClusterBalance(options.seed),
    "lstm-ae": lambda options: LSTMAutoencoder(options.seed, options.minutes, options.train_steps),
    "beatgan": lambda options: BeatGAN(options.seed, options.minutes, options.train_steps),
    "diffadt-no-embedding": lambda options: _diffadt(options, use_entity=False),
    "diffadt": lambda options: _diffadt(options, use_entity=True),
    "random": lambda options: Random(options.seed),
    "median-deviation": lambda options: MedianDeviation(),
    "pca-error": lambda options: PCAError(),
    "nearest-neighbour": lambda options: NearestNeighbour(options.seed),
    "ridge-ar60": lambda options: RidgeAR(),
}


def _diffadt(options: Options, *, use_entity: bool) -> DiffADT:
    return DiffADT(use_entity, options.seed, options.minutes, options.train_steps, options.preset)
