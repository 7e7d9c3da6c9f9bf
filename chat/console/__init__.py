"""The input line and what is redrawn around it, on a thread of its own. Knows no conversation."""
