"""The conversation: its state, its main loop, how a message is answered. Knows no terminal."""
