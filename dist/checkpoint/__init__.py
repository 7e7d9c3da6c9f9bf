"""Checkpoint folders: found, indexed, checked and read as they are. Knows no model and no group."""
