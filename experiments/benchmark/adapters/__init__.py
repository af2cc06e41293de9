"""The benchmark's measurements: problems on disk, one process a measurement, an adapter for each library.

Adapters are run as ``PYTHON -m experiments.benchmark.adapters.ADAPTER SPEC.json``. Those of other libraries run
under the interpreter of ``.peers`` (``make peers``), so they import nothing of this project but the harness and
``experiments.models.networks``.
"""
