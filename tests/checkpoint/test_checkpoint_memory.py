"""Loading takes the memory of what is kept and little more, and reads no byte twice; measured with 0.9 GB."""

from __future__ import annotations

import pytest
from measure_loading import measure, table


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_rank_needs_what_it_keeps_and_at_most_64_mib_more(tmp_path, capsys):
    rows = measure(tmp_path)
    with capsys.disabled():
        print("\n" + table(rows))
    saved = rows[0]["read"]
    for row in rows:
        assert row["above"] <= 64 << 20, row
        assert row["read"] <= 1.01 * saved / row["ranks"], row
