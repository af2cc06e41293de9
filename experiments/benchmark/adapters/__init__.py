"""The benchmark's adapters: one file a library, one process a measurement.

Each is run as ``PYTHON -m experiments.benchmark.adapters.ADAPTER SPEC.json``. Those of other libraries run
under the interpreter of ``.peers`` (``make peers``). So they import nothing of this project but
``benchmark.harness`` and ``models.networks``.
"""
