"""What a model is, from its config.json: family, sizes, and where its blocks, embeddings and head are."""

from mol.architecture.handler import UniversalArchitectureHandler
from mol.architecture.info import ArchitectureFamily, ArchitectureInfo

__all__ = ["ArchitectureFamily", "ArchitectureInfo", "UniversalArchitectureHandler"]
