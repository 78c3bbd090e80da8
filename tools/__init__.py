"""Tools of the people who work on the package; nothing here is installed."""
