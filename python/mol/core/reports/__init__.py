"""Describes a fused model: its parts, and what its routers choose."""
