"""Fig. 2, right, as the theory has it: the same network at a stationary point."""
