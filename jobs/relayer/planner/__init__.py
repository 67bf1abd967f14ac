"""The planner: which components share a layer across a catalog, and what a plan is."""
