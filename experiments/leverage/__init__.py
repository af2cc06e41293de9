"""Right sizes: leave-one-out retraining at smaller and smaller λ, against first-order and corrected scores."""
