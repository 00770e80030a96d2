"""What a thing is, as plain JSON: equal for equal content."""
