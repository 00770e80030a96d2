"""How a run computes: compiled segments, lanes, the schedule they walk and who drives them."""
