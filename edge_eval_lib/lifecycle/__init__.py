"""The stages of a lifecycle: adapt, compress, serve and score; the harness beside them."""
