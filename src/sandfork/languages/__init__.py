"""What programs can be written in, as data.

`data/*.toml` has one file a language: its names, how a plain run looks, and the templates its sandboxes are forked
from. `catalogue` reads and checks them; `imports` tells which modules a program names. Nothing else in sandfork knows
a language by name.
"""
