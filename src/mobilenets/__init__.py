"""Image models that fit a phone."""
