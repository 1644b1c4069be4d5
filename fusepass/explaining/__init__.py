"""Which kernel runs a site and why, as text and as a page."""
