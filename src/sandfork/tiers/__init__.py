"""Isolation mechanisms behind one port: `base` is the port, every other module or package here is one tier.

`tests/contract/test_tier_contract.py` says what every tier must do; siblings never import each other.
"""
