"""Background duties of a worker's main process: the registry of workers, recovery, shutdown."""
