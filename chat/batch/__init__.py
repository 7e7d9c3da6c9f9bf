"""Many prompts without a conversation: prompts in, records out. Knows no console."""
