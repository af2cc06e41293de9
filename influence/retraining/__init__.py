"""What really happens: retraining without points, with other labels, with changed features."""
