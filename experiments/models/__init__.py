"""From config to numerics: objectives, solvers, networks, SVMs, backbones and their features."""
