"""How a run is displayed while it lasts."""
