"""What a person or a CI job runs around the pipeline."""
