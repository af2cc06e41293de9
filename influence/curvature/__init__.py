"""Curvature as operators: Hessian, Gauss-Newton, damping, spectrum."""
