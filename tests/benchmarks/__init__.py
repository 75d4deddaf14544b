"""How fast it is, and over what: ``python -m tests.benchmarks`` prints one row for each figure, with its target.

Every scenario measures its floor in the same run, in turns with what it measures, so that a busy machine slows both.
Read `scenarios` for what is measured, `floors` for what it is held against.
"""
