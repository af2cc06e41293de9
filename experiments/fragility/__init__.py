"""Is influence fragile in deep nets? Depth, width, decay, activation and convergence, on small nets."""
