"""Working on a whole catalog: fetch, plan, queue, watch, publish, report. What the ``catalog`` command calls."""
