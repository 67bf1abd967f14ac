"""Components: the owner of each file of an image, read from the image itself.

Each reader of a database yields claims; :mod:`~layerfarm.jobs.relayer.components.ownership` decides between them.
"""

from layerfarm.jobs.relayer.components.image_tree import Claim, Component, ImageTree, Links
from layerfarm.jobs.relayer.components.ownership import Ownership, Rule, find_owners

__all__ = ["Claim", "Component", "ImageTree", "Links", "Ownership", "Rule", "find_owners"]
