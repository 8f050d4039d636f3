"""What every stage uses: environment, errors, settings, files, prepared data and paths."""
