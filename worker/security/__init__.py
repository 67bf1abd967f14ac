"""The sandbox of units, and signatures of requests."""
