"""What others published: their numbers, what to cite, and the words and tables for a paper."""
