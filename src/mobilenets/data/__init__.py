"""Labelled images: reading, sources, preprocessing and distortions, loaders."""
