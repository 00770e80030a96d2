"""Strictness for every test: rank promotion raises, and failures of the compiler surface."""

from __future__ import annotations

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
