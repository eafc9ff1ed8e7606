"""Has the name of setuptools, which pip asks for by default (PEP 517)."""
