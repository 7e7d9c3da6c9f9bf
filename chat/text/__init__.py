"""Text and token ids: transcripts, prompts, tokenizer, traces, cell widths. Knows no terminal."""
