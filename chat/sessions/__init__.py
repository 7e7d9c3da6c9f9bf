"""Conversations on disk: sessions, journals, exports. Knows no screen and no model."""
