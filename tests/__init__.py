"""The tests. Modules with cases for several files show the values of a failing assert, as test files do."""

import pytest

for _module in ("clip_cases", "download_cases", "frame_cache_cases", "golden_cases", "reader_cases", "search_cases"):
    pytest.register_assert_rewrite(f"tests.helpers.{_module}")
