"""Readers of MXNet's files. Their bytes are a stranger's: each reader is bounded, and fuzzed."""
