"""How models and adapters are made."""
