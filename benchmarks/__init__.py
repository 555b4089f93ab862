"""Benchmarks to run by hand. They print ratios measured in one run on one machine, and never assert a time."""
