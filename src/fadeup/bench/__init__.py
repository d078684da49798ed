"""Measures time and memory of upsamplers against their peers, and says on what machine.

`timing` measures one call, `case` says what a benchmark runs, `run` runs it, `gpu` has what is measured otherwise on a
GPU, `targets` has the fixed benchmarks, `view` and `tables` show the result. The command is `fadeup bench`.
"""

from fadeup.bench.timing import Measurement, commit_of, environment, measure, measure_curves, peak_memory

__all__ = ["Measurement", "commit_of", "environment", "measure", "measure_curves", "peak_memory"]
