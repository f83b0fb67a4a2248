"""The experiments behind the published numbers: recipes, the one function that runs them, their tables."""
