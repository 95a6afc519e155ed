"""Benchmarks, each named after the claim that it measures."""
