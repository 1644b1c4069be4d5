"""The pass: what is decided, edited and taken back."""
