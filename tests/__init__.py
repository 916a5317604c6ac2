"""The tests. A failing assert in `tests.helpers` shows its values, as one in a test file does."""

import pytest

pytest.register_assert_rewrite("tests.helpers")
