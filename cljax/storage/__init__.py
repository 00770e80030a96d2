"""Files that last: written whole, locked, sealed by SHA-256; checkpoints."""
