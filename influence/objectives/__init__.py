"""What is minimised: one contract, several homes for the data."""
