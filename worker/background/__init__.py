"""What a worker's main process does besides the work: it says that it is there, looks for lost work, and stops."""
