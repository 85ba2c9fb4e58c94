"""What a solved edit says of itself."""

import numpy as np
import pytest

from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.edit_check import EditCheck, Success
from mobiedit.runtime.edit_result import SolvedEdit
from mobiedit.runtime.search import Look, SearchResult


@pytest.mark.parametrize(("steps", "failures"), [(0, 1), (20, 0)])
def test_edit_fails_when_the_model_knew_the_answer(steps: int, failures: int) -> None:
    solved = SolvedEdit(
        key=np.ones(3, np.float32),
        value=np.ones(2, np.float32),
        direction=np.ones(3, np.float32),
        leverage=1.0,
        search=SearchResult(np.full(2, 0.5, np.float32), steps, True, (Look(1, 0.1, 0.9),)),
        check=EditCheck(Success(True, 0.9, 0.1), (), (), Success(False, 0.1, 2.3)),
        cost=CostMeter().cost(),
    )
    assert len(solved.failures) == failures
    assert all("already" in failure for failure in solved.failures)
