"""What groups of training points do: sums of influences and one Newton step against retraining."""
