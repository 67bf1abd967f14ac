"""One image becomes another: who owns each file of it, which layers it is cut into, and the proof that it is equal."""
