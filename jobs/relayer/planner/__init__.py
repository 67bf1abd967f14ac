"""The planner: the components that share a layer across a catalog, and the format of a plan."""
