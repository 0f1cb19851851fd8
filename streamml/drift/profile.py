"""The reference profile: histograms of the training data, computed once and kept with the model bundle."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from streamml.drift.bins import Counts, FeatureBins, fit_bins

__all__ = ["PROFILE_FORMAT", "Profile", "ProfileError"]

Values: TypeAlias = npt.ArrayLike | Sequence[Any]

PROFILE_FORMAT = 1
"""Version of the stored JSON; raised when an older reader would misread it."""


class ProfileError(ValueError):
    """Raised when a profile cannot be fitted, read, or does not know a feature."""


class _Header(msgspec.Struct):
    format: int


class _Stored(msgspec.Struct):
    format: int
    features: dict[str, FeatureBins]


class Profile:
    """Reference histograms of a model's features.

    Make one with `Profile.fit`, keep it with `to_json`, read it with `from_json`; then count live values with
    `bin_counts` (columns) or `bin_index` (one value), and judge the counts with `streamml.drift.compare`.

    >>> profile = Profile.fit({"amount": np.arange(1000.0)}, bins=4)
    >>> profile["amount"].edges
    (249.0, 499.0, 749.0)
    >>> profile.bin_counts("amount", np.array([-5.0, 10.0, 800.0, np.nan])).tolist()
    [2, 0, 0, 1, 1]
    >>> profile.bin_index("amount", 800.0)
    3
    >>> Profile.from_json(profile.to_json()) == profile
    True
    """

    __slots__ = ("_features",)

    def __init__(self, features: Mapping[str, FeatureBins]) -> None:
        self._features = dict(features)

    @classmethod
    def fit(cls, columns: Mapping[str, Values], bins: int = 10) -> Profile:
        """Compute the histograms of reference columns.

        Args:
            columns: Reference values by feature: numbers, truth values or text, in one dimension.
            bins: Most bins per feature, without the one for missing values and the one for unseen values.

        Raises:
            ProfileError: There is no column, a column is empty, has another shape, or holds other things.
        """
        if bins < 2 or not columns:
            msg = f"Profile.fit: wanted at least one column and two bins, got {len(columns)} columns and bins={bins}"
            raise ProfileError(msg)
        features: dict[str, FeatureBins] = {}
        for name, column in columns.items():
            values = _as_array(column)
            if values.ndim != 1 or not len(values):
                msg = (
                    f"Profile.fit: feature {name!r}: wanted one dimension and at least one row, got shape "
                    f"{values.shape}; pass one array of reference values per feature"
                )
                raise ProfileError(msg)
            try:
                features[name] = fit_bins(values, bins)
            except (TypeError, ValueError) as exc:
                msg = f"Profile.fit: feature {name!r}: {exc}"
                raise ProfileError(msg) from exc
        return cls(features)

    @classmethod
    def from_json(cls, data: bytes | str) -> Profile:
        """Read a profile that `to_json` wrote.

        Raises:
            ProfileError: The bytes are not a profile, or of a format that this version does not read.
        """
        again = "fit it again from the reference data with Profile.fit"
        try:
            found = msgspec.json.decode(data, type=_Header).format
            if found != PROFILE_FORMAT:
                msg = (
                    f"drift profile: wanted format {PROFILE_FORMAT}, got format {found}; "
                    f"use the streamml version that wrote it, or {again}"
                )
                raise ProfileError(msg)
            return cls(msgspec.json.decode(data, type=_Stored).features)
        except msgspec.DecodeError as exc:
            msg = f"drift profile: wanted JSON written by Profile.to_json, got something else ({exc}); {again}"
            raise ProfileError(msg) from exc

    def to_json(self) -> bytes:
        """Return the profile as JSON, with its format version."""
        return msgspec.json.format(msgspec.json.encode(_Stored(PROFILE_FORMAT, self._features)), indent=1)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features, in the order in which they were fitted."""
        return tuple(self._features)

    def bin_counts(self, feature: str, values: Values) -> Counts:
        """Return how many live values fall into each bin of a feature.

        Args:
            feature: Name of the feature.
            values: Live values in one dimension, of the kind that was fitted.
        """
        return self[feature].count(_as_array(values))

    def bin_index(self, feature: str, value: float | str | None) -> int:
        """Return the bin of one live value; agrees with `bin_counts`."""
        return self[feature].index(value)

    def __getitem__(self, feature: str) -> FeatureBins:
        try:
            return self._features[feature]
        except KeyError:
            near = difflib.get_close_matches(feature, self._features, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            msg = f"drift profile: there is no feature {feature!r}; {guess}known: {', '.join(self._features)}"
            raise ProfileError(msg) from None

    def __contains__(self, feature: object) -> bool:
        return feature in self._features

    def __eq__(self, other: Any) -> bool:
        return self._features == other._features if isinstance(other, Profile) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Profile({', '.join(self._features)})"


def _as_array(values: Values) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind == "U" and not isinstance(values, np.ndarray):
        return np.asarray(values, dtype=object)  # or NaN in a list of texts would turn into the text 'nan'
    return array
