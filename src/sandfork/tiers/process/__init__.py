"""The process tier: see `tier.py`."""

from sandfork.tiers.process.launch import Launched, LaunchSettings, launch
from sandfork.tiers.process.tier import ProcessSettings, ProcessTier

__all__ = ["LaunchSettings", "Launched", "ProcessSettings", "ProcessTier", "launch"]
