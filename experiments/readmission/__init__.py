"""Section 5.3: four children among the training patients."""
