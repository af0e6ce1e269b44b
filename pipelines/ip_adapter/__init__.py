"""IP-Adapter: reference pictures as prompts of some rows of a batch."""
