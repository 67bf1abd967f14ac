"""The job store: its operations (``interface``), in Redis (``in_redis``, ``lua/``)."""
