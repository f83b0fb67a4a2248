"""Diagrams drawn by code: boxes, arrows and grids of numbers, one module per lesson, read in any theme."""
