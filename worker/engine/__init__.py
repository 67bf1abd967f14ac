"""Runs flows, with their stages and units, locally or on the farm, and handles their errors."""
