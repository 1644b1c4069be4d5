"""The commands of ``python -m fusepass``, and what they measure."""
