"""ControlNet: pictures that guide the structure of what some rows of a batch draw."""
