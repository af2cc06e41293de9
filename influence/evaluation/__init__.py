"""Is it right: agreement with retraining, LDS, recall of flipped labels, brittleness, damping, baselines."""
