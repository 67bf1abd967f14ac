"""What an operator sees: logs, metrics, traces, and the counts of the farm."""
