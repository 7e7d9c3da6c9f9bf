"""The terminal itself: its streams, its mode, its state after any exit. Knows no layout."""
