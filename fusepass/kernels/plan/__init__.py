"""From a problem's shape to the configuration of a kernel."""
