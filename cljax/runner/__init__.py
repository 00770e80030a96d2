"""A run from its options to its folder: prepare, learn, results, artefacts."""
