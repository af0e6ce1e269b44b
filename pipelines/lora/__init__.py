"""LoRA adapters: file formats, the slot bank and the per-row layers."""
