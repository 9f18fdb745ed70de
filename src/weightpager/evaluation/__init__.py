"""A bundle's tasks measured the way a device runs them, on the data that they were held out from. Imports no torch."""
