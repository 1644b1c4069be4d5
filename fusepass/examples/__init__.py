"""Models to try fusepass on, each a file with ``Model``, ``get_init_inputs``, ``get_inputs``."""
