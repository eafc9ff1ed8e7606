"""What programs can be written in, as data.

`data/*.toml` has one file a language: its names, how it is compiled and run, what it needs installed, the templates its
sandboxes are forked from, and small programs that prove that it works. `parsing` reads a file, `catalogue` all of
them; `checks` judges the proofs; `imports` tells which modules a program names. Nothing else in sandfork knows a
language by name.
"""
