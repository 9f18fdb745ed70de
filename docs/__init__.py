"""What makes pages and the site. Nothing here is installed; run from a checkout, ``python -m docs.NAME``."""
