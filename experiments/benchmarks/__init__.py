"""Benchmarks, each named as the claim that it measures."""
