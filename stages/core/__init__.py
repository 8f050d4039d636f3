"""What every stage uses: environment, errors, settings, files, prepared splits, paths."""
