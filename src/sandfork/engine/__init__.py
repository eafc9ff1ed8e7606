"""The engine: one request in, one true result out.

`engine.Engine` is the only door. It has a request planned (`plan`, pure), waits for a turn (`admission`), leases a
sandbox forked ahead (`pool`), runs the program in it under a wall clock and an output cap (`execution`, `output`), and
has the sandbox destroyed after the answer has left (`disposal`). It sees tiers only through `sandfork.tiers.base`.
"""
