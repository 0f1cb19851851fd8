import math
import re

import numpy as np
import pytest
from scipy.stats import chi2

from streamml.drift.chi2 import chi2_cdf, chi2_isf, chi2_ppf, chi2_sf

DEGREES = [0.5, 1, 2, 3, 4, 5, 9, 10, 19, 50, 99, 100, 500, 1000, 10_000, 1_000_000]
TAILS = [1e-300, 1e-100, 1e-12, 1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.3, 0.4999]


@pytest.mark.parametrize("df", DEGREES)
def test_quantiles_equal_scipy(df: float) -> None:
    probabilities = [*TAILS, 0.5, *(1 - t for t in TAILS if t > 1e-13)]
    assert [chi2_ppf(p, df) for p in probabilities] == pytest.approx(chi2.ppf(probabilities, df).tolist(), rel=1e-9)
    assert [chi2_isf(p, df) for p in probabilities] == pytest.approx(chi2.isf(probabilities, df).tolist(), rel=1e-9)


@pytest.mark.parametrize("df", DEGREES)
def test_distribution_equals_scipy(df: float) -> None:
    xs = np.array([0.0, 1e-6, 0.1, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0]) * df
    assert [chi2_cdf(x, df) for x in xs] == pytest.approx(chi2.cdf(xs, df).tolist(), rel=1e-9, abs=1e-300)
    assert [chi2_sf(x, df) for x in xs] == pytest.approx(chi2.sf(xs, df).tolist(), rel=1e-9, abs=1e-15)


def test_ends_of_the_range() -> None:
    assert chi2_ppf(0.0, 3) == 0.0
    assert chi2_ppf(1.0, 3) == math.inf
    assert chi2_isf(0.0, 3) == math.inf


@pytest.mark.parametrize(("p", "df", "text"), [(95, 9, "not a percentage"), (0.95, 0, "number of bins minus one")])
def test_a_bad_argument_is_explained(p: float, df: float, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        chi2_ppf(p, df)
