"""What every stage uses: environment, terminal, errors, settings, files, prepared splits, paths."""
