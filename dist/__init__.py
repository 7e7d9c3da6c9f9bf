"""What every rank runs: token ids in, token ids out. Knows no text."""
