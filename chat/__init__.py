"""Rank 0's conversation: text, keys, screen, files. Knows no tensors and no other rank."""
