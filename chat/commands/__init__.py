"""The slash commands, one row each. Knows no keyboard and draws nothing."""
