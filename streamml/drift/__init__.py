"""Drift of a model's inputs: a reference profile, and comparisons with a false-alarm rate that holds."""

from streamml.drift.bins import BinKind, FeatureBins
from streamml.drift.profile import Profile, ProfileError
from streamml.drift.psi import DriftResult, Verdict, compare, psi, psi_threshold

__all__ = [
    "BinKind",
    "DriftResult",
    "FeatureBins",
    "Profile",
    "ProfileError",
    "Verdict",
    "compare",
    "psi",
    "psi_threshold",
]
