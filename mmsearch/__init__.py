"""What a question becomes."""
