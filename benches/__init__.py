"""Benchmarks for airspeed velocity; lower is better in each of them."""
