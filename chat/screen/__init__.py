"""Replies, tables, notices and traces as terminal lines. Reads no key and writes nothing."""
