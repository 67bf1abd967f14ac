"""Components: who owns each file of an image, read from the image itself.

One module per kind of database. Each yields claims; :mod:`~layerfarm.jobs.relayer.components.ownership` decides.
"""

from layerfarm.jobs.relayer.components.imagetree import ImageTree, Links
from layerfarm.jobs.relayer.components.model import Claim, Component, Rule
from layerfarm.jobs.relayer.components.ownership import Ownership, find_owners

__all__ = ["Claim", "Component", "ImageTree", "Links", "Ownership", "Rule", "find_owners"]
