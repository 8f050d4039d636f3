"""What every stage uses: environment, machine, terminal, errors, settings, files and datasets."""
