"""Right sizes: retraining without single points at smaller and smaller λ, against both kinds of scores."""
