"""Block refinement with a loaded model: the rule, forward passes, KV caches. Knows no process group."""
