"""Samples -> batches of tokens: in memory or as a stream, in an order that seed and step decide."""
