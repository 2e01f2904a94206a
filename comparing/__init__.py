"""What runs leave: tables, pictures, old logs; it imports `common`, `metrics` and `intervals` alone."""
