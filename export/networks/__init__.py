"""Modules of tensors: what is exported, and what the torch engine runs."""
