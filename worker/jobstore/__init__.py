"""All that Redis holds of jobs: what may be done to it (``interface``), and how (``in_redis``, ``lua/``)."""
