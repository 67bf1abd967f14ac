"""Components: who owns each file of an image, read from the image itself.

One module per kind of database. Each yields claims; :mod:`~jobs.catalog.components.ownership` decides.
"""

from jobs.catalog.components.imagetree import ImageTree, Links
from jobs.catalog.components.model import Claim, Component, Rule
from jobs.catalog.components.ownership import Ownership, find_owners

__all__ = ["Claim", "Component", "ImageTree", "Links", "Ownership", "Rule", "find_owners"]
