"""Where raw data comes from: the catalogue of datasets, and a module for each kind of source."""
