"""Fig. 1: what each component of influence does."""
