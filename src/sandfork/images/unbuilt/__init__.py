"""What pip is given on PYTHONPATH in place of setuptools: with it, sources are put in place and not run."""
