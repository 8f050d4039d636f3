"""Measure what the README and docs/benchmark.md say of speed, memory and accuracy over seeds."""
