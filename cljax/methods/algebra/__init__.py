"""Products of gradients: of groups of examples, of low rank, and their projections."""
