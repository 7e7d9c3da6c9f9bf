"""A checkpoint's model: built, divided among the ranks, filled, reloaded. Knows no decoding."""
