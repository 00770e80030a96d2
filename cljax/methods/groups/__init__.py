"""Options and pieces that several methods share."""
