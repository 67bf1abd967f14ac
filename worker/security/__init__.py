"""What keeps a job in its place, and strangers away from the farm."""
