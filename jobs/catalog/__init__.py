"""Re-layering: who owns each file of an image, and how a catalog of images is cut into layers together."""
