"""Serving engines: the answer as a grammar, and the same read-outs over HTTP as the decoder gives in process."""
