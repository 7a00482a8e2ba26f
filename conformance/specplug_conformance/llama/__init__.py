"""Tiny Llamas in transformers: the reference of every adapter whose framework serves them. The only part that needs transformers."""
