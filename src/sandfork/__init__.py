"""sandfork: run untrusted code in a sandbox forked from a warm template."""

__version__ = "0.1.0"
