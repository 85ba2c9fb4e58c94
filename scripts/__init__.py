"""Benchmarks and experiments. Run them from the repository's root as modules: ``python -m scripts.compare_costs``."""

import os

# torch's idle threads spin, and would slow down what else is measured in the same process; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
