"""Fig. 3: a loss without a second derivative, smoothed."""
