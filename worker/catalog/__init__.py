"""The ``catalog`` command's work: fetch, plan, queue, watch, publish and report all images of a catalog."""
