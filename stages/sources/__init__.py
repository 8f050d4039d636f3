"""Where raw data comes from: the catalogue of datasets and the sources of their files."""
