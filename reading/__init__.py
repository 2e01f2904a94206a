"""Data-set files and images; it imports `common` alone."""
