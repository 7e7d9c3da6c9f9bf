"""Markdown as styled terminal lines, while it streams in. Knows no reply."""
