"""Text in, vectors out: prefixes, tokeniser, and the `Encoder`."""
