"""Beside other libraries: the same data, the same parameters, one machine."""
