"""Logs, metrics, traces, and the counts of the farm."""
