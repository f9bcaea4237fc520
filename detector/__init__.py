"""The model and the score: S4, diffusion, reconstruction, scoring, thresholds, checkpoints, worker."""
