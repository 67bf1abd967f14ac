"""Runs a flow: its stages and units, here or on the farm, and what happens when one of them goes wrong."""
