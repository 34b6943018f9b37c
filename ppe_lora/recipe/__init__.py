"""Recipes: one YAML file to one frozen tree, the only configuration there is."""

from ppe_lora.recipe.load import load_recipe
from ppe_lora.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe"]
