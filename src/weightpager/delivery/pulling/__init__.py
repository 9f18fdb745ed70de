"""A device's side: verify, plan, fetch, assemble, install, roll back."""
