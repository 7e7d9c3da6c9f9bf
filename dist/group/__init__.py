"""The ranks as one group: orders, verdicts, sums. Knows no model."""
