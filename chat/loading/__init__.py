"""From what was asked for to a checkpoint and a loaded model. Knows no conversation."""
