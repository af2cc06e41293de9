"""The benchmark's adapters: one file per library, one process per measurement.

Each is run as ``PYTHON -m experiments.benchmark.adapters.ADAPTER SPEC.json``. Those of other libraries run
under the interpreter of ``.peers`` (``make peers``). So they import nothing of this project but
``benchmark.harness`` and ``models.networks``.
"""
