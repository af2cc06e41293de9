"""Fig. 5: training-set attacks on one test image at a time."""
