"""Makes and measures checkpoints: datasets, training loop, calibration, metrics, evaluation."""
