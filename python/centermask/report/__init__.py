"""How good a model is and where it fails: what `centermask eval --html` shows."""
