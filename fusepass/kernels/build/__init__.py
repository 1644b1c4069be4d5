"""Compilers, builds and the folder that keeps them."""
